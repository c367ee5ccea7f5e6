"""Who may import whom (design, section 2), read from the syntax trees."""

import ast
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


def imports(file: Path) -> set[str]:
    """Every module a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
    return found


FILES = sorted(file for package in OURS for file in (ROOT / package).glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_arrows(file: Path) -> None:
    package, modules = file.parent.name, imports(file)
    ours = {module.split(".")[0] for module in modules} & OURS
    assert ours <= MAY_IMPORT[package], f"{package} may import {sorted(MAY_IMPORT[package])} of ours"
    if package != "train" and package != "benchmarks":
        assert not any(module.startswith("torch.distributed") for module in modules), "only train/ touches torch.distributed"
    if file.name not in ("dali.py", "gpu_pipeline_mode.py"):  # the second only to be compared with the first
        assert not any(module.startswith("nvidia") for module in modules), "only pipeline/dali.py imports DALI"
    assert "tests" not in {module.split(".")[0] for module in modules}


def test_no_file_hides_a_standard_module() -> None:
    """A script's own folder leads sys.path: train/profile.py would break cProfile."""
    import sys

    assert not {file.stem for file in FILES} & set(sys.stdlib_module_names)
    assert not [file for file in FILES if file.stem == "utils"]


def test_packets_are_read_in_one_place() -> None:
    """PyAV's generators leave memory behind where they are dropped; see `packets_of`."""
    product = [file for package in ("dataset_builders", "pipeline", "train") for file in (ROOT / package).rglob("*.py")]
    calls = [file.name for file in product if ".demux(" in (text := file.read_text()) or "container.decode(" in text]
    assert calls == ["decode.py"]
