"""What is measured of a preset, as figures, a table and a picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean

import matplotlib
import numpy as np

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.parts.results import Result
from dataset_builders.media.presets import PRESETS

SHORT_SIDES = (256, 320)  # pixels
STARTS = 8  # samples of each clip
FRAMES, STRIDES = 16, (4, 2)  # of a sample; rates are those of the first, which spans 2.03 s at 30 frames per second


@dataclass(slots=True)
class Figures:
    """Of one preset at one short side, summed over the clips."""

    preset: str
    short_side: int | None
    clips: int = 0
    seconds: float = 0.0  # of video
    frames: int = 0
    bytes: int = 0
    encode_time: float = 0.0  # CPU-seconds of FFmpeg
    sample_time: float = 0.0  # CPU-seconds of decoding STARTS samples a clip, of the first stride
    sample_frames: np.ndarray = field(default_factory=lambda: np.zeros(len(STRIDES)))  # decoded for these, of each stride
    decode_time: float = 0.0  # CPU-seconds of decoding all frames
    psnr: list[float] = field(default_factory=list)  # dB, of each clip
    ssim: list[float] = field(default_factory=list)

    def add(self, clip: "Figures") -> None:
        """Sum up."""
        for name in (each.name for each in fields(self)[2:]):
            setattr(self, name, getattr(self, name) + getattr(clip, name))

    @property
    def name(self) -> str:
        return self.preset if self.short_side is None else f"{self.preset}/{self.short_side}"

    @property
    def values(self) -> dict[str, tuple[float, str]]:
        """{figure: (value, unit)}; without what this preset has none of."""
        values = {
            "bytes": (float(self.bytes), "bytes"),
            "bytes_per_second": (self.bytes / self.seconds, "bytes/s of video"),
            "encode": (self.frames / self.encode_time if self.encode_time else math.nan, "frames/CPU-s"),
            "decode_sample": (self.clips * STARTS / self.sample_time, f"samples of {FRAMES} frames/CPU-s"),
            **{
                f"frames_per_sample/stride{stride}": (frames / (self.clips * STARTS), "frames decoded")
                for stride, frames in zip(STRIDES, self.sample_frames.tolist(), strict=True)
            },
            "decode_whole": (self.frames / self.decode_time, "frames/CPU-s"),
            "psnr": (fmean(self.psnr) if self.psnr else math.nan, "dB"),
            "ssim": (fmean(self.ssim) if self.ssim else math.nan, "1"),
        }
        return {name: value for name, value in values.items() if math.isfinite(value[0])}


def results(figures: Sequence[Figures]) -> list[Result]:
    """presets/PRESET/SHORT_SIDE/FIGURE; the baseline is what `copy` has."""
    copied = figures[0].values
    return [
        Result(f"presets/{of_kind.name}/{name}", value, unit, copied.get(name, (None, unit))[0] if of_kind.short_side else None)
        for of_kind in figures
        for name, (value, unit) in of_kind.values.items()
    ]


def table(figures: Sequence[Figures]) -> str:
    """A line a preset and short side."""
    first, strides = figures[0], " / ".join(map(str, STRIDES))
    lines = [
        f"{first.clips} clips, {first.seconds:.0f} s, {first.frames} frames; samples of {FRAMES} frames, at stride {strides}",
        f"{'preset':<10} {'side':>5} {'MB':>8} {'kB/s':>7} {'encode':>9} {'samples':>9} {'frames decoded':>14} {'frames':>9} "
        f"{'PSNR':>7} {'SSIM':>7}",
        f"{'':<10} {'px':>5} {'':>8} {'':>7} {'frames/s':>9} {'decoded/s':>9} {'for a sample':>14} {'decoded/s':>9} {'dB':>7} "
        f"{'':>7}",
    ]
    for of_kind in figures:
        values = {name: value for name, (value, _) in of_kind.values.items()}
        encoded = f"{values['encode']:9.0f} " if "encode" in values else f"{'-':>9} "
        alike = f"{values['psnr']:7.2f} {values['ssim']:7.4f}" if "psnr" in values else f"{'-':>7} {'-':>7}"
        size = f"{values['bytes'] / 1e6:8.2f} {values['bytes_per_second'] / 1e3:7.1f}"
        frames = " / ".join(f"{values[f'frames_per_sample/stride{stride}']:.1f}" for stride in STRIDES)
        decoded = f"{values['decode_sample']:9.1f} {frames:>14} {values['decode_whole']:9.0f}"
        lines.append(f"{of_kind.preset:<10} {of_kind.short_side or '-':>5} {size} {encoded}{decoded} {alike}")
    return "\n".join(lines)


def plot(figures: Sequence[Figures], file: Path) -> None:
    """Decoding rate, frames decoded and likeness over bytes: a point for each preset and short side."""
    panels = [
        ("decode_sample", f"samples of {FRAMES} frames decoded per CPU-second"),
        (f"frames_per_sample/stride{STRIDES[0]}", f"frames decoded for a sample at stride {STRIDES[0]}"),
        ("psnr", "PSNR against the source, dB"),
    ]
    markers = {None: "s", SHORT_SIDES[0]: "o", SHORT_SIDES[1]: "^"}
    figure, axes = plt.subplots(1, len(panels), figsize=(16, 4.6), layout="constrained")
    for axis, (name, title) in zip(axes, panels, strict=True):
        for of_kind in figures:
            values = of_kind.values
            if name not in values or (name.startswith("frames") and of_kind.short_side == SHORT_SIDES[1]):  # as the other
                continue
            x, y = values["bytes_per_second"][0] / 1e3, values[name][0]
            colour = f"C{PRESETS.index(of_kind.preset)}"
            axis.scatter(x, y, s=70, color=colour, marker=markers[of_kind.short_side], zorder=3)
            side = f" {of_kind.short_side}" if of_kind.short_side else ""
            axis.annotate(of_kind.preset + side, (x, y), xytext=(7, 5), textcoords="offset points", fontsize=9)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("kB per second of video (log)")
        axis.set_title(title, fontsize=11)
        axis.margins(0.25, 0.15)  # room for the names
        axis.grid(which="both", alpha=0.25)
        if name == "decode_sample":
            axis.set_ylim(bottom=0)
        if name.startswith("frames"):
            axis.invert_yaxis()  # the fewer the better
    figure.suptitle(f"{figures[0].clips} clips, {figures[0].seconds:.0f} s of video: better is up and to the left", fontsize=11)
    figure.savefig(file, dpi=130)
    plt.close(figure)
