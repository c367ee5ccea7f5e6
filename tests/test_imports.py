"""Who may import whom (design, section 2), read from the syntax trees."""

import ast
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"benchmarks", "dataset_builders", "model", "pipeline", "train"}
MAY_IMPORT = {
    "benchmarks": OURS,
    "train": {"train", "pipeline", "model"},
    "dataset_builders": {"dataset_builders", "pipeline"},
    "pipeline": {"pipeline"},
    "model": {"model"},
}
FILES = {file.relative_to(ROOT).as_posix(): file for package in sorted(OURS) for file in sorted((ROOT / package).rglob("*.py"))}
MOST_FILES = 26  # of a folder: more are a hall, in which nothing is found; train/ has a way in for each stage
MORE_FILES = {
    "train": 4,
    "model": 2,
}  # that nothing displaced: detect, score_detections, retrieve, demo; the action detector, two towers


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def imports(name: str) -> set[str]:
    """Every module a file imports, anywhere in it; of `from package import name`, the module NAME, if it is one."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name}: relative import"
            found.update(module if file_of(module := f"{node.module}.{a.name}") else node.module for a in node.names)
    return found


def file_of(module: str) -> str | None:
    """That of a module of ours; of a package its __init__.py."""
    path = module.replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in FILES), None)


def edges() -> dict[str, set[str]]:
    """File -> the files it imports."""
    return {name: {file for module in imports(name) if (file := file_of(module))} - {name} for name in FILES}


def circle(graph: Mapping[str, Iterable[str]]) -> list[str] | None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def room(name: str) -> str:
    """A folder inside a package; what lies beside such folders stands for itself: the way in, or what all rooms use."""
    return name.rsplit("/", 1)[0] if name.count("/") > 1 else name


def rooms(files: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for name, imported in files.items():
        graph.setdefault(room(name), set()).update({room(other) for other in imported} - {room(name)})
    return graph


@pytest.mark.parametrize("name", FILES)
def test_arrows(name: str) -> None:
    package, modules = name.split("/")[0], imports(name)
    ours = {module.split(".")[0] for module in modules} & OURS
    assert ours <= MAY_IMPORT[package], f"{package} may import {sorted(MAY_IMPORT[package])} of ours"
    if package not in ("train", "benchmarks"):
        assert not any(module.startswith("torch.distributed") for module in modules), "only train/ touches torch.distributed"
    if name != "pipeline/decoding/dali.py":
        assert not any(module.startswith("nvidia") for module in modules), "only pipeline/decoding/dali.py imports DALI"
    assert "tests" not in {module.split(".")[0] for module in modules}


def test_no_circles() -> None:
    assert circle(edges()) is None
    assert circle(rooms(edges())) is None


def test_a_circle_is_found() -> None:
    files = {"p/a/x.py": ["p/b/y.py"], "p/b/z.py": ["p/a/w.py"], "p/b/y.py": [], "p/a/w.py": []}
    assert circle(files) is None and circle(rooms(files)) is not None
    assert circle(rooms({"p/a/x.py": ["p/c.py"], "p/c.py": ["p/a/w.py"]})) is not None


def test_rooms() -> None:
    """Every folder is a package that says what lives in it; none is a hall."""
    folders = {file.parent for file in FILES.values()}
    assert all(ast.get_docstring(tree((folder / "__init__.py").relative_to(ROOT).as_posix())) for folder in folders)
    files = {folder.relative_to(ROOT).as_posix(): len(list(folder.glob("*.py"))) - 1 for folder in folders}
    assert {folder: n for folder, n in files.items() if n > MOST_FILES + MORE_FILES.get(folder, 0)} == {}


def test_no_file_hides_a_standard_module() -> None:
    """A script's own folder leads sys.path: train/profile.py would break cProfile."""
    scripts = {Path(name).stem for name in FILES if name.count("/") == 1}
    assert not scripts & set(sys.stdlib_module_names)
    assert not [name for name in FILES if name.endswith("/utils.py")]


def test_packets_are_read_in_one_place() -> None:
    """PyAV's generators leave memory behind where they are dropped; see `packets_of`."""
    texts = {name: file.read_text() for name, file in FILES.items() if not name.startswith(("benchmarks", "model"))}
    assert [name for name, text in texts.items() if ".demux(" in text or "container.decode(" in text] == [
        "pipeline/decoding/decode.py"
    ]
