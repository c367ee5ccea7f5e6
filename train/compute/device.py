"""Which device is computed on: a GPU where there is one, and never the CPU without a word where a GPU cannot be used."""

import os
from pathlib import Path

import torch

from pipeline.console import complain

NODE, DRIVER = Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version")  # a container shows the host's driver without a GPU
NEEDED = {12: 525, 13: 580}  # drivers by CUDA's major version, NVIDIA's table of minor-version compatibility


def device_kind(asked: str, flag: str) -> str:
    """ "auto", "cpu" or "cuda", as given with a flag -> "cpu" or "cuda". Raises ValueError if torch does not see a GPU that is
    asked for, or that the machine has."""
    if asked == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if asked == "cuda":
        why = "CUDA_VISIBLE_DEVICES hides them all" if hidden else unseen() or "there is no driver"
        raise ValueError(f"{flag} cuda: torch {torch.__version__} sees no CUDA device: {why}; or take {flag} cpu")
    if not hidden and NODE.exists():
        raise ValueError(f"this machine has a GPU that torch {torch.__version__} does not see: {unseen()}; or take {flag} cpu")
    if not hidden and DRIVER.exists():
        complain(
            f"on the CPU: there is a driver {driver()}, but no GPU was given to this container (docker --gpus all)", once=True
        )
    return "cpu"


def unseen() -> str | None:
    """Why torch may not see the GPU of a machine with a driver; None without a driver."""
    if not (NODE.exists() or DRIVER.exists()):
        return None
    if torch.version.cuda is None:
        return "it is built without CUDA; install the one for CUDA"
    needed, found = NEEDED.get(int(torch.version.cuda.split(".")[0])), driver()
    number = found.split(".")[0]
    if needed and number.isdecimal() and int(number) < needed:
        return f"the driver is {found}, and CUDA {torch.version.cuda} needs {needed} or newer"
    return f"the driver is {found}; nvidia-smi may say more"


def driver() -> str:
    """Its version, or "unknown"."""
    try:
        words = DRIVER.read_text().split()
    except OSError:
        return "unknown"
    return next((word for word in words if word[0].isdigit() and "." in word), "unknown")


def be_deterministic() -> None:
    """Let the device give the same bits for the same operations, in this process, from now on: on a GPU attention's backward
    pass otherwise adds in any order. Call it before CUDA is used; what has no such kernel raises RuntimeError. (Torch would
    also fill all new memory with NaN; nobody here reads it.)"""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
