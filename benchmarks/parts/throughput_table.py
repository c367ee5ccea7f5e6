"""What `throughput.py` has measured: as a table, as words, as figures for --json."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from benchmarks.parts.original_files import OriginalFiles
from benchmarks.parts.path_parts import DecodeWork, LoaderWork
from benchmarks.parts.results import Result, disturbance
from benchmarks.parts.stopwatch import Part, ratios
from pipeline.machine import usable_cores
from pipeline.report.text import four_lines

PEER_VIEWS = 4  # R of whatever reads the original files, the paper's


@dataclass(slots=True)
class Measured:
    """Everything of one run."""

    views_per_clip: int  # R of the model's views
    workers: int  # that decode
    device: torch.device
    parts: list[Part] = field(default_factory=list)  # in the order of their turns
    decode_only: dict[str, Part] = field(default_factory=dict)  # by the loader whose clips it decodes
    first_batch: dict[str, float] = field(default_factory=dict)  # seconds from making a loader to its first batch
    peers: list[Part] = field(default_factory=list)
    on_files: dict[str, Part] = field(default_factory=dict)  # the loader on the peers' "same_files", and as "h264_fast"
    originals: OriginalFiles | None = None
    model: Part | None = None
    cached: Part | None = None  # the model on batches from memory
    end_to_end: Part | None = None
    data_wait: float | None = None  # share of the time that the end-to-end loop waited for a batch
    profile: dict[str, Any] | None = None  # of the loader with the model's R, and of training; what limits
    skipped: list[str] = field(default_factory=list)  # what was not measured, and why

    def add(self, part: Part) -> Part:
        self.parts.append(part)
        return part

    def add_loader(self, name: str, title: str, loader: LoaderWork, decode: DecodeWork) -> None:
        """A loader on the dataset, and after each of its turns libav decoding what it delivered."""
        self.add(Part(name, title, loader.loader.recipe.views_per_clip, loader))
        self.decode_only[name] = self.add(Part(f"{name}/decode_only", "decode only", 1, decode))
        self.first_batch[name] = loader.first_batch

    @property
    def loaders(self) -> list[Part]:
        """On the dataset."""
        return [part for part in self.parts if part.name in self.decode_only]

    @property
    def loader(self) -> Part:
        """The one of them with the model's R."""
        return next(part for part in self.loaders if part.views_per_clip == self.views_per_clip)

    @property
    def decoding(self) -> Part:
        """The turns of decoding alone after all loaders, as one part, that has no views."""
        turns = list(self.decode_only.values())
        rates = [rate for part in turns for rate in part.rates]
        cores, others = [n for part in turns for n in part.cores], [n for part in turns for n in part.neighbours]
        return Part("decode_only", "decode only", 0, turns[0].work, rates, cores, others)

    @property
    def best_peer(self) -> Part | None:
        return max(self.peers, key=lambda part: part.clips, default=None)

    @property
    def neighbours(self) -> float:
        """Cores that other programs had in use, in the turns of the part where they had most."""
        return max(median(part.neighbours) for part in self.parts)


def table(measured: Measured) -> str:
    """A line a part; `cores` are those that it had in use, `others` those that other programs had meanwhile."""
    rows: list[tuple[str, Part | None, str]] = []
    if (files := measured.originals) is not None:
        built = files.h264_fast
        rows.append(("builder, h264-fast", None, f"{built.clips / built.seconds:9.4g}"))
    loaders = measured.loaders
    if loaders:
        rows.append(("decode only", measured.decoding, ""))
    rows += [(part.title, part, share(part, measured.decode_only[part.name], "decode only")) for part in loaders]
    rows += [(peer.title, peer, "") for peer in measured.peers]
    best = measured.best_peer
    rows += [(part.title, part, factor(part, best) if best else "") for part in measured.on_files.values()]
    if measured.model:
        rows.append((measured.model.title, measured.model, ""))
        for fed in filter(None, (measured.cached, measured.end_to_end)):
            rows.append((fed.title, fed, share(fed, measured.model, "model alone")))
    width = max(len(title) for title, _, _ in rows)
    lines = [f"\n{'part':<{width}}  {'clips/s':>9}  {'views/s':>9}  {'spread':>7}  {'cores':>5}  {'others':>6}"]
    for title, row, said in rows:
        if row is None:
            lines.append(f"{title:<{width}}  {said}")
            continue
        views = f"{row.views:>9.4g}" if row.views_per_clip else " " * 9
        busy = f"{median(row.cores):>5.1f}  {median(row.neighbours):>6.1f}"
        lines.append(f"{title:<{width}}  {row.clips:>9.4g}  {views}  {row.spread:>7.0%}  {busy}  {said}".rstrip())
    return "\n".join([*lines, *(f"not measured: {what}" for what in measured.skipped)])


def share(part: Part, baseline: Part, name: str) -> str:
    """In clips: "88 % (85 to 90) of decode only"."""
    of_rounds = [100 * ratio for ratio in ratios(part, baseline, in_views=False)]
    return f"{median(of_rounds):.0f} % ({min(of_rounds):.0f} to {max(of_rounds):.0f}) of {name}"


def factor(part: Part, baseline: Part) -> str:
    """In views: "3.1 x (2.9 to 3.2) DataLoader, decord2"."""
    of_rounds = ratios(part, baseline, in_views=True)
    name = ", ".join(baseline.title.split(", ")[:2])
    return f"{times(median(of_rounds))} x ({times(min(of_rounds))} to {times(max(of_rounds))}) {name}"


def verdict(measured: Measured) -> str:
    """What tubecell gains over a DataLoader; what limits, what to change, and what a model like this takes."""
    lines = disturbance(measured.neighbours) + gain(measured)
    if measured.profile and (model := measured.model):
        cores, loader = min(measured.workers, usable_cores()), measured.loader
        lines += [
            *four_lines(measured.profile),
            f"The loader alone is {times(loader.views / model.views)} times as fast as the model alone; to keep this model "
            f"busy takes {model.views / (loader.views / cores):.2g} cores of decoding, and {cores} "
            f"{'decodes' if cores == 1 else 'decode'} here.",
        ]
        if measured.device.type == "cpu":
            both = 1 / (1 / loader.views + 1 / model.views)
            can = f"{both:.4g} views/s are what both together can reach, if neither slows the other."
            lines.append(f"They share the cores: {can}")
        lines.append(f"Training waited for data {measured.data_wait:.0%} of the time.")
    seconds = median(measured.first_batch.values())
    return "\n".join(["", *lines, f"A loader's first batch came {seconds:.1f} s after it was made."])


def gain(measured: Measured) -> list[str]:
    """Over the best DataLoader."""
    files, best = measured.originals, measured.best_peer
    if files is None or best is None or len(measured.on_files) < 2:
        return []
    as_they_are, fast = (median(ratios(part, best, in_views=True)) for part in measured.on_files.values())
    built = files.h264_fast
    return [
        f"On these files tubecell gives {times(as_they_are)} x the views of {best.title.split(', R')[0]}, as they are "
        f"(--preset copy), and {times(fast)} x once they are built as h264-fast (the default), which takes "
        f"{built.seconds / built.clips:.2g} s a clip here and makes {built.bytes / files.bytes:.2g} x the bytes."
    ]


def results(measured: Measured) -> list[Result]:
    """For --json: decoding and building in clips/s, the rest in views/s."""
    found: list[Result] = []
    if measured.decode_only:
        found.append(measured.decoding.result("clips/s"))
    for loader in measured.loaders:
        decode = measured.decode_only[loader.name]
        found += [decode.result("clips/s"), loader.result("views/s")]
        found.append(loader.result("clips/s", f"{loader.name}/vs_decode_only", decode))
    if (files := measured.originals) is not None:
        built = files.h264_fast
        found += [
            Result("builder/h264_fast", built.clips / built.seconds, "clips/s"),
            Result("builder/h264_fast/bytes", built.bytes, "bytes", files.bytes),
            *(peer.result("views/s") for peer in measured.peers),
        ]
    best, prefix = measured.best_peer, f"loader/libav/r{PEER_VIEWS}"
    for what, name in (("h264_fast", "vs_dataloader_peer"), ("same_files", "vs_dataloader_peer_same_files")):
        if part := measured.on_files.get(what):
            found += [part.result("views/s"), *([part.result("views/s", f"{prefix}/{name}", best)] if best else [])]
    if measured.model:
        fed = filter(None, (measured.cached, measured.end_to_end))
        found += [measured.model.result("views/s"), *(part.result("views/s", baseline=measured.model) for part in fed)]
    found += [Result(f"{name}/first_batch", seconds, "s") for name, seconds in measured.first_batch.items()]
    if measured.data_wait is not None:
        found.append(Result("data_wait", measured.data_wait, "share of time"))
    return [*found, Result("neighbours", measured.neighbours, "cores")]


def times(ratio: float) -> str:
    """4.03 -> "4.0", 1234.5 -> "1,234"."""
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
