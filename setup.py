"""What pyproject.toml cannot say: a wheel has everything under one name, `tubecell`, and the kernels are compiled.

The checkout's folders become `tubecell.*`, and lines that begin with `from pipeline` begin with `from tubecell.pipeline`. What
else would name a module of ours ends the build: an `import` of it, or its name in a string.
"""

import ast
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

OURS = "benchmarks|dataset_builders|model|pipeline|train"
IMPORT = re.compile(rf"^(\s*from )((?:{OURS})[\w.]* import )", re.MULTILINE)
NAME = re.compile(rf"(?<![\w./-])(?:{OURS})(?:\.\w+)+")


def under_one_name(code: str, where: str) -> str:
    """A module's code as it is in the wheel. Raises SystemExit for a mention of ours that is not at home there."""
    code = IMPORT.sub(r"\1tubecell.\2", code)
    for node in ast.walk(ast.parse(code)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            paths = {name: Path(*name.split(".")[:2]) for name in NAME.findall(node.value)}
            names = [name for name, path in paths.items() if path.is_dir() or path.with_suffix(".py").exists()]
        if wrong := [name for name in names if re.match(rf"(?:{OURS})\b", name)]:
            raise SystemExit(f"{where}, line {node.lineno}: {wrong[0]} has another name in a wheel; import it by `from`")
    return code


class BuildPy(build_py):
    """Also for an editable installation, which takes the checkout as it is, and the kernels beside their sources."""

    def run(self) -> None:
        if not self.editable_mode:
            homes = {name if name == "tubecell" else f"tubecell.{name}": name.replace(".", "/") for name in self.packages}
            self.package_dir, self.packages = homes, list(homes)
        super().run()
        compile_library = runpy.run_path("pipeline/decoding/compiled.py")["compile_library"]
        for source in Path("pipeline").rglob("*.c"):
            try:
                compile_library(source, Path("" if self.editable_mode else f"{self.build_lib}/tubecell", source.parent))
            except OSError as error:
                print(f"warning: NumPy or torch will do what {source.name} does at a fraction of the cost: {error}")

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        file, copied = super().build_module(module, module_file, package)
        Path(file).write_text(under_one_name(Path(module_file).read_text(encoding="utf-8"), module_file), encoding="utf-8")
        return file, copied


class Wheel(bdist_wheel):
    """The kernel is for this kind of machine, and for any Python."""

    def run(self) -> None:
        shutil.rmtree(folder := self.get_finalized_command("build").build_base, ignore_errors=True)  # with files that have gone
        super().run()
        shutil.rmtree(folder)  # no second copy of the code stays

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class OneName(Distribution):
    """What is installed, as setuptools does not see it."""

    def has_ext_modules(self) -> bool:
        return True

    def iter_distribution_names(self) -> Iterator[str]:
        yield "tubecell"


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPy, "bdist_wheel": Wheel}, distclass=OneName)
