"""A machine whose compiler is missing, broken or without Python's headers: what is taken instead, and what is refused."""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.compiler import compiler_missing
from model.patches import token_function, triton_missing
from model.pixels import patches_and_targets
from train.compute.parallel import compiles
from train.config import ComputeConfig

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No program is to be found but those in the folder."""
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    for cached in (compiler_missing, triton_missing):
        cached.cache_clear()
    yield tmp_path
    for cached in (compiler_missing, triton_missing):
        cached.cache_clear()


def test_without_a_compiler_the_defaults_are_plain_and_what_is_asked_for_is_refused(bare: Path) -> None:
    assert token_function("auto", GPU, torch.bfloat16) is patches_and_targets
    assert not compiles(ComputeConfig(), GPU) and not compiles(ComputeConfig(), CPU)
    for method, device in (("triton", GPU), ("compiled", GPU), ("compiled", CPU)):
        with pytest.raises(ValueError, match=rf"--compute.tokens {method}: there is no compiler of C.* apt install"):
            token_function(method, device, torch.bfloat16)  # type: ignore[arg-type]
    for device in (GPU, CPU):
        with pytest.raises(ValueError, match=r"--compute.compile: there is no compiler of C.* apt install"):
            compiles(ComputeConfig(compile=True), device)


def test_a_compiler_that_cannot_compile_is_none(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = bare / "gcc"
    broken.write_text("#!/bin/sh\necho 'fatal error: stdlib.h: no such file' >&2\nexit 1\n")
    broken.chmod(0o755)
    assert "cannot compile for this Python (fatal error: stdlib.h" in (compiler_missing("cuda") or "")
    compiler_missing.cache_clear()
    monkeypatch.setenv("CC", "no-such-cc")
    assert (compiler_missing("cuda") or "").startswith("no-such-cc cannot be run (No such file")


def test_headers_of_python_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler_missing.cache_clear()
    if (reason := compiler_missing("cuda")) is not None:
        pytest.skip(reason)
    assert compiles(ComputeConfig(), GPU)
    compiler_missing.cache_clear()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h" in (compiler_missing("cuda") or "")
    compiler_missing.cache_clear()
