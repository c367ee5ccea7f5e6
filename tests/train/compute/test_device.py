"""Machines whose GPU torch does not see, by their driver's files."""

from pathlib import Path

import pytest
import torch

from train.compute import device
from train.compute.device import device_kind

TEXT = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Wed Mar  6 20:27:21 UTC 2026\nGCC version:  gcc version 12.2.0\n"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Whose torch sees no GPU; the files of a driver are in the folder."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(device, "NODE", tmp_path / "nvidiactl")
    monkeypatch.setattr(device, "DRIVER", tmp_path / "version")
    return tmp_path


@pytest.mark.parametrize(
    ("driver", "cuda", "words"),
    [
        ("535.129.03", "13.2", "the driver is 535.129.03, and CUDA 13.2 needs 580 or newer"),
        ("580.65.06", "13.2", "the driver is 580.65.06; nvidia-smi may say more"),
        ("535.129.03", "12.8", "the driver is 535.129.03; nvidia-smi may say more"),
        (None, "13.2", "the driver is unknown"),
        ("580.65.06", None, "it is built without CUDA"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_not_left_for_the_cpu(
    machine: Path, monkeypatch: pytest.MonkeyPatch, driver: str | None, cuda: str | None, words: str
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    (machine / "nvidiactl").touch()
    if driver:
        (machine / "version").write_text(TEXT.format(driver))
    with pytest.raises(ValueError, match=f"this machine has a GPU that torch .* does not see: {words}.*or take --device cpu"):
        device_kind("auto", "--device")
    with pytest.raises(ValueError, match=f"--device cuda: torch .* sees no CUDA device: {words}"):
        device_kind("cuda", "--device")
    assert device_kind("cpu", "--device") == "cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_kind("auto", "--device") == "cpu"
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES hides them all"):
        device_kind("cuda", "--device")


def test_a_container_without_its_hosts_gpu_computes_on_the_cpu_and_says_so(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert device_kind("auto", "--device") == "cpu"
    assert not capsys.readouterr().err
    with pytest.raises(ValueError, match="sees no CUDA device: there is no driver"):
        device_kind("cuda", "--device")
    (machine / "version").write_text(TEXT.format("580.65.06"))
    assert device_kind("auto", "--device") == "cpu"
    assert "there is a driver 580.65.06, but no GPU was given to this container" in capsys.readouterr().err
