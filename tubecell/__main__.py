"""tubecell PROGRAM [OPTION ...]

Each program is a file of the folders dataset_builders, train and benchmarks; `tubecell PROGRAM --help` says what it takes.
On several GPUs: torchrun --nproc-per-node 8 -m tubecell pretrain RECIPE --data DATASET --out RUN
"""

import ast
import difflib
import runpy
import sys
from importlib import import_module
from pathlib import Path

FOLDERS = ("dataset_builders", "train", "benchmarks")
NAMES = {"dataset_builders/build_dataset.py": "build", "dataset_builders/report.py": "report-dataset"}
IS_PROGRAM = '\nif __name__ == "__main__":\n'


def programs() -> dict[str, tuple[str, str]]:
    """name, the file's unless NAMES has another -> (module, the first line of what it says of itself); by folder."""
    found = {}
    for folder in FOLDERS:
        package = import_module(f"tubecell.{folder}")
        for file in sorted(Path(package.__path__[0]).glob("*.py")):
            if IS_PROGRAM in (text := file.read_text(encoding="utf-8")):
                summary = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
                name = NAMES.get(f"{folder}/{file.name}", file.stem.replace("_", "-"))
                found[name] = f"{package.__name__}.{file.stem}", summary
    return found


def main() -> int:
    """Becomes the program that the first argument names. Returns 0 after the list of them, 2 for a name that there is not."""
    name, *arguments = sys.argv[1:] or ["--help"]
    found = programs()
    if name in ("-h", "--help"):
        lines = [f"  {name:<24}{summary}" for name, (_, summary) in found.items()]
        print(f"usage: {__doc__}", *lines, sep="\n")
        return 0
    if name not in found:
        close = difflib.get_close_matches(name, found, cutoff=0.5) or found
        print(f"tubecell: there is no program {name!r}; perhaps {', '.join(close)}", file=sys.stderr)
        return 2
    sys.argv[:] = [f"tubecell {name}", *arguments]
    runpy.run_module(found[name][0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
