"""tubecell PROGRAM [OPTION ...]

`tubecell PROGRAM --help` says what it takes. To begin with: `tubecell throughput --videos FOLDER`, your videos' speed.
On several GPUs: torchrun --nproc-per-node 8 -m tubecell pretrain RECIPE --data DATASET --out RUN
"""

import ast
import difflib
import sys
from importlib import import_module
from pathlib import Path
from shutil import get_terminal_size

FOLDERS = {
    "dataset_builders": "datasets: build, choose, check",
    "train": "models: train, evaluate, use",
    "benchmarks": "measurements",
}
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
    """Runs the program that the first argument names. Returns its exit status, 0 after the list of them, 2 for a name that
    there is not."""
    import_module("tubecell.pipeline.console").prepare()
    name, *arguments = sys.argv[1:] or ["--help"]
    found = programs()
    if name in ("-h", "--help"):
        print(f"usage: {__doc__.rstrip()}")
        width = get_terminal_size((10_000, 0)).columns if sys.stdout.isatty() else 10_000
        for folder, title in FOLDERS.items():
            print(f"\n{title}")
            for name, (module, summary) in found.items():
                if f".{folder}." in f".{module}":
                    line = f"  {name:<24}{summary}"
                    print(line if len(line) <= width else f"{line[: width - 1]}…")
        return 0
    if name not in found:
        close = difflib.get_close_matches(name, found, cutoff=0.5) or found
        print(f"tubecell: there is no program {name!r}; perhaps {', '.join(close)}", file=sys.stderr)
        return 2
    sys.argv[:] = [f"tubecell {name}", *arguments]
    return import_module(found[name][0]).main()


if __name__ == "__main__":
    sys.exit(main())
