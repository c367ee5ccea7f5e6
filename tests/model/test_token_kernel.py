"""The Triton kernel against the plain reference: in Triton's interpreter on a CPU, compiled where there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model import patches
from model.patches import token_function
from model.pixels import patches_and_targets, token_bytes

triton = pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def check_kernel() -> None:
    """Run by a process of its own on a CPU: the interpreter is chosen when Triton is imported."""
    from model import token_kernel

    generator = torch.Generator().manual_seed(0)
    kinds = (16, 2, 48, torch.float32), (14, 2, 42, torch.bfloat16), (4, 1, 12, torch.float16)
    for patch_size, tubelet_size, side, dtype in kinds:
        views = torch.randint(0, 256, (3, 4, side, side, 3), dtype=torch.uint8, generator=generator)
        every_value = (
            torch.arange(4 * side * side) % 256
        )  # of three channels, in each 16 x 16 pixels of a frame that is 48 wide
        views[0] = every_value.view(4, side, side, 1)
        views[1] = views[1] % 4 + 90  # little contrast: rounding shows in the targets
        views[2, :, : side // 2] = 128  # flat
        tokens = 4 // tubelet_size * (side // patch_size) ** 2
        order = torch.stack([torch.randperm(tokens, generator=generator) for _ in range(3)]).to(DEVICE)
        arguments = views.to(DEVICE), order[:, :1], order[:, 1:4], patch_size, tubelet_size  # strided indices, as the model's
        got_patches, got_targets = token_kernel.patches_and_targets(*arguments, dtype)
        want_patches, _ = patches_and_targets(*arguments, dtype)
        _, want_targets = patches_and_targets(*arguments, torch.float64)
        assert got_patches.dtype == dtype and got_targets.dtype == torch.float32
        if dtype == torch.bfloat16 and DEVICE == "cpu":  # the interpreter cuts where the device rounds
            torch.testing.assert_close(got_patches, want_patches, rtol=2**-7, atol=0)
        else:
            assert torch.equal(got_patches, want_patches)
        varied = want_targets.abs().amax(-1, keepdim=True) > 0.1
        assert varied.any() and not varied.all()
        error = (got_targets - want_targets).abs()
        assert (error * varied).max() < 2e-5 and error.max() < 0.5  # flat patches: rounding noise over epsilon


def test_kernel_equals_the_reference() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    if DEVICE == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-c", "from tests.model.test_token_kernel import check_kernel; check_kernel()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("patch_size", "dtype"), [(14, "bf16"), (16, "fp32")])
def test_kernel_compiles_for_hopper_and_rounds_step_by_step(patch_size: int, dtype: str, tmp_path, monkeypatch) -> None:
    """To PTX, without a GPU: what the interpreter takes and the compiler refuses shows here, and so does arithmetic that
    would not round as the official code's."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from model.token_kernel import LAUNCH, kernel_constants, tokens_kernel

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    constants = kernel_constants(208, 920, 16, 224, 224, patch_size, 2)
    types = {"views": "*u8", "visible": "*i64", "target": "*i64", "patches": f"*{dtype}", "targets": "*fp32"}
    strides = {"visible_stride": "i32", "target_stride": "i32"}
    signature = {**types, **strides, **dict.fromkeys(constants, "constexpr")}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(types))}
    source = ASTSource(tokens_kernel, signature=signature, constexprs=constants, attrs=aligned)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=LAUNCH).asm["ptx"]
    assert "div.full" not in ptx and "approx" not in ptx and "div.rn.f32" in ptx and "sqrt.rn.f32" in ptx
    # two for each of a thread's 48 values and each of three quotients (/ 255, / std, / deviation), and for the mean and the
    # variance of each of three channels; every other product and sum rounds by itself
    assert ptx.count("fma.rn") == 2 * (3 * 48 + 2 * 3)
    assert ptx.count("bar.sync") == 0  # one warp a token
    assert ptx.count("selp") + ptx.count("setp") < 100  # channels are picked by the compiler, not 48 times
    assert ptx.count("st.global.v4.b32") >= 12  # of the targets 16 bytes at once


def test_methods_by_name(monkeypatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    patches.triton_missing.cache_clear()
    assert token_function("auto", cpu, torch.float32) is patches_and_targets
    assert token_function("auto", cuda, torch.bfloat16).__module__ == "model.token_kernel"
    assert token_function("triton", cuda, torch.float64) is patches_and_targets
    with pytest.raises(ValueError, match=r'--compute.tokens triton: it has no cpu code .*; use "auto", "reference" or'):
        token_function("triton", cpu, torch.float32)
    patches.triton_missing.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert token_function("auto", cuda, torch.bfloat16) is patches_and_targets
    with pytest.raises(ValueError, match="the package triton is not installed"):
        token_function("triton", cuda, torch.float32)
    patches.triton_missing.cache_clear()


def test_bytes_are_those_of_the_tensors() -> None:
    views = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 4, 28, 28, 3), dtype=np.uint8))
    idx = torch.arange(8)[None]
    patches_BVP, targets_BLP = patches_and_targets(views, idx[:, :3], idx[:, 3:], 14, 2, torch.bfloat16)
    want = views.nbytes + idx.nbytes + patches_BVP.nbytes + targets_BLP.nbytes  # all 8 tokens are needed: all pixels are
    assert token_bytes(3, 5, 14 * 14 * 6, torch.bfloat16) == want
