"""Who decodes a dataset's clips for a device: libav, DALI, or both. No DALI is needed to answer.

On a GPU "auto" is libav where a rank's cores can feed its step: then NVDEC has nothing to gain, and in the trainer's process
something to lose (see `dali`). Where they cannot, it is DALI if that was measured to be faster on such a card. None was yet; by
DALI's source a GPU decodes 100 to 280 clips/s, what one to three cores do.
"""

import ctypes
import importlib.util
from dataclasses import dataclass, field, replace
from typing import Literal

import av
import numpy as np
import pyarrow as pa
import torch

from pipeline.decoding.colour import find_swscale
from pipeline.decoding.resize import by_16, find_kernel
from pipeline.decoding.trim import can_decode
from pipeline.storage.manifest import Clip, Manifest

# clips/s of libav on a core: 16 frames at stride 4 of h264-plain, four views of 224², a Xeon with AVX-512 (docs/figures.md)
LIBAV_RATE = 91.0
DALI_RATES: dict[str, float] = {}  # clips/s of a whole card, by a part of its name, of the same clips; none was measured yet


@dataclass(frozen=True, slots=True)
class DecoderChoice:
    """Which decoder takes a dataset on a device, and why."""

    name: str  # "libav", "dali", "both", or the name of a function that was given
    reasons: dict[str, int] = field(default_factory=dict)  # why clips are left to libav -> how many
    why: str = field(default="", compare=False)  # DALI was taken, where nobody asked for it
    kernels: str = field(default="", compare=False)  # what makes crops and colours of those
    slow: tuple[str, ...] = field(default=(), compare=False)  # what of this is the slow way here, and why

    def __str__(self) -> str:
        """`both: libav takes 2 clips (DALI decodes ... on a GPU, not mpeg4); crops: AVX-512, colours: swscale 9.5`"""
        left = ", ".join(f"libav takes {count} clips ({reason})" for reason, count in self.reasons.items())
        return "; ".join(filter(None, [f"{self.name}: {left}" if left else self.name, self.why, self.kernels]))


def choose_decoder(
    manifest: Manifest,
    device: str | torch.device,
    asked: Literal["auto", "libav", "dali"] = "auto",
    taken: np.ndarray | None = None,
    *,
    cores: int = 1,
    wanted: float | None = None,
) -> DecoderChoice:
    """Who decodes for a device. "auto": on a CPU libav, three times as fast there; on a GPU libav, too, unless `cores` give
    less than the `wanted` clips/s and DALI was measured to give more on such a card, and is installed. "dali" insists: on a
    CPU, too. What DALI does not take is libav's in any case. `taken`, bool (N,): of which clips, by default of all.

    Raises ValueError if DALI was asked for and takes none of the clips.
    """
    choice = _choose(manifest, torch.device(device), asked, taken, cores, wanted)
    if choice.name == "dali":
        return choice
    crops, colours, slow = "AVX-512" if by_16() else "AVX2", "swscale {}.{}".format(*av.library_versions["libswscale"]), []
    if isinstance(why := find_kernel(), str):
        crops, slow = "torch", [f"torch resizes crops, at 2.5 times the cost of the compiled kernel: {why}"]
    if isinstance(why := find_swscale(), str):
        colours, slow = "PyAV", [*slow, f"PyAV converts colours, of whole frames, at 1.7 times the cost of their crops: {why}"]
    return replace(choice, kernels=f"crops: {crops}, colours: {colours}", slow=tuple(slow))


def _choose(
    manifest: Manifest, device: torch.device, asked: str, taken: np.ndarray | None, cores: int, wanted: float | None
) -> DecoderChoice:
    kind, count, why = device.type, len(manifest) if taken is None else int(taken.sum()), ""
    if asked == "libav":
        return DecoderChoice("libav", {"as asked for": count})
    if asked == "dali" and kind == "cuda" and (lacks := what_dali_lacks()) is not None:
        raise ValueError(f"decoder 'dali' cannot be had: {lacks}; or take decoder 'libav'")
    if asked not in ("auto", "dali"):
        raise ValueError(f"decoder {asked!r} is not known; allowed are 'auto', 'libav', 'dali', or a function")
    if asked == "auto":
        if kind == "cpu":
            return DecoderChoice("libav", {"the batch is wanted on a CPU": count})
        is_faster, why = _dali_is_faster(device, cores, wanted)
        if not is_faster:
            return DecoderChoice("libav", {why: count})
    reasons = _left_to_libav(manifest, kind, taken)
    left = sum(reasons.values())
    if asked == "dali" and left == count:
        raise ValueError(f"DALI takes none of the {count} clips: {'; '.join(reasons)}. Take decoder 'libav' or 'auto'")
    return DecoderChoice("dali" if not left else "libav" if left == count else "both", reasons, "" if left == count else why)


def _dali_is_faster(device: torch.device, cores: int, wanted: float | None) -> tuple[bool, str]:
    """Whether it was measured to be and can be had, and why it is taken or not."""
    libav = LIBAV_RATE * cores
    rates = f"{cores} core{'s decode' if cores > 1 else ' decodes'} about {libav:,.0f} clips/s"
    if wanted is None:
        return False, f"{rates}; how many the step takes is not known"
    rates += f", the step takes about {wanted:,.0f}"
    if libav >= wanted:
        return False, rates
    if (lacks := what_dali_lacks()) is not None:
        return False, f"{rates}: it may wait for data, and {lacks}"
    card = torch.cuda.get_device_name(device) if torch.cuda.is_available() else "this GPU"
    rate = next((rate for part, rate in DALI_RATES.items() if part in card), None)
    if rate is None:
        helps = f"where NVDEC decodes more, --loader.decoder dali helps, not measured on {card}"
        return False, f"{rates}: it may wait for data; {helps}"
    return rate > libav, f"{rates}, DALI on {card} gives about {rate:,.0f}"


def what_dali_lacks() -> str | None:
    """None if DALI can be expected to decode on this machine's GPU, else what is missing."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "nvidia-dali-cuda130 is not installed"
    try:
        ctypes.CDLL("libnvcuvid.so.1")
    except OSError:  # Docker gives "compute,utility" to those who do not ask
        return "NVDEC's libnvcuvid.so.1 is not there; start containers with NVIDIA_DRIVER_CAPABILITIES=compute,utility,video"
    return None


def _left_to_libav(manifest: Manifest, kind: str, taken: np.ndarray | None) -> dict[str, int]:
    """Why DALI does not take clips on a "cpu" or "cuda" device -> how many."""
    names = ["codec", "width", "height", "rotation"]
    columns = pa.table({name: manifest.column(name).cast(pa.string()) for name in names})
    columns = columns if taken is None else columns.filter(pa.array(taken))
    rows = columns.group_by(names).aggregate([([], "count_all")]).to_pylist()  # 1.35 million rows are some hundred kinds
    reasons: dict[str, int] = {}
    for row in rows:
        width, height, rotation = (int(row[name]) for name in names[1:])
        clip = Clip(0, "", "", 0, 0, 0, width, height, row["codec"], rotation, "", "", 0, 0, (), "")
        if (reason := can_decode(clip, kind)) is not None:
            reasons[reason] = reasons.get(reason, 0) + row["count_all"]
    return reasons
