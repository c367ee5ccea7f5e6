"""What `throughput.py` has measured: as a table, as words, as figures for --json."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

from benchmarks.parts.original_files import OriginalFiles
from benchmarks.parts.path_parts import DecodeWork, LoaderWork
from benchmarks.parts.results import Result
from benchmarks.parts.stopwatch import Part, ratios
from pipeline.machine import usable_cores
from pipeline.report.text import four_lines
from pipeline.report.verdict import DISTURBED

PEER_VIEWS = 4  # R of whatever reads the original files, the paper's
SAME, FAST = f"r{PEER_VIEWS}/same_files", f"r{PEER_VIEWS}/h264_fast"
UNSTEADY = 0.5  # of their median, the most that the rounds' ratios may differ by for one to be told


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
    # the loader, "r4/same_files", on what the peers read, and on these as "h264_fast" and "h264_plain", with one view, too
    on_files: dict[str, Part] = field(default_factory=dict)
    finetuning: dict[str, Part] = field(default_factory=dict)  # up to normalised floats, see `finetune_views.add_finetuning`
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
    def compared(self) -> dict[str, list[float]]:
        """Of the rounds, views of tubecell by those of the best DataLoader: on the files as they are, and as h264-fast."""
        best = self.best_peer
        if best is None or not self.on_files:
            return {}
        return {name: ratios(self.on_files[name], best, in_views=True) for name in (SAME, FAST)}

    @property
    def beside_plain(self) -> list[tuple[Part, Part]]:
        """The loader on h264-fast, and on h264-plain, of the same files and with as many views."""
        pairs = [[self.on_files.get(f"r{r}/{preset}") for preset in ("h264_fast", "h264_plain")] for r in (1, PEER_VIEWS)]
        return [(fast, plain) for fast, plain in pairs if fast and plain]

    @property
    def beside_dataloader(self) -> list[tuple[Part, Part]]:
        """Fine-tuning's views from the loader, and from the DataLoader."""
        found = self.finetuning
        pairs = ("plain", "dataloader/plain"), ("official", "dataloader")
        return [(found[ours], found[theirs]) for ours, theirs in pairs if found]

    @property
    def neighbours(self) -> float:
        """Cores that other programs had in use, in the turns of the part where they had most."""
        return max(median(part.neighbours) for part in self.parts)


def table(measured: Measured) -> str:
    """A line a part; `cores` are those that it had in use, `others` those that other programs had meanwhile."""
    rows: list[tuple[str, Part | None, str]] = []
    if (files := measured.originals) is not None:
        for name, built in files.built.items():
            rows.append((f"builder, {name}", None, f"{built.clips / built.seconds:9.4g}  {built.bytes / 1e6:.4g} MB"))
    loaders = measured.loaders
    if loaders:
        rows.append(("decode only", measured.decoding, ""))
    rows += [(part.title, part, share(part, measured.decode_only[part.name], "decode only")) for part in loaders]
    rows += [(peer.title, peer, "") for peer in measured.peers]
    best = measured.best_peer
    rows += [(part.title, part, factor(part, best) if best else "") for part in measured.on_files.values()]
    for fast, plain in measured.beside_plain:
        rows.append((f"loader, libav, R = {fast.views_per_clip}, h264-fast by h264-plain", None, beside(fast, plain)))
    rows += [(part.title, part, "") for name, part in measured.finetuning.items() if name.startswith("dataloader")]
    rows += [(ours.title, ours, factor(ours, theirs)) for ours, theirs in measured.beside_dataloader]
    if measured.finetuning:
        device, official = measured.finetuning["device"], measured.finetuning["official"]
        rows.append((device.title, device, factor(device, official)))
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


def beside(fast: Part, plain: Part) -> str:
    """ "1.31 x (1.28 to 1.33); beside decoding 3.1 ms of a core a clip, 0.97 x" """
    rates, own = ratios(fast, plain, in_views=False), own_ms(fast, plain)
    clips = f"{median(rates):.2f} x ({min(rates):.2f} to {max(rates):.2f})"
    return f"{clips}; beside decoding {own.value:.3g} ms of a core a clip, {own.ratio:.2f} x"


def own_ms(fast: Part, plain: Part) -> Result:
    """What a clip takes of a core beside decoding."""
    assert isinstance(fast.work, LoaderWork) and isinstance(plain.work, LoaderWork)
    mine, theirs = fast.work.own_ms(), plain.work.own_ms()
    of_rounds = [own / other for own, other in zip(mine, theirs, strict=True)]
    name = f"loader/libav/r{fast.views_per_clip}/own_ms/vs_plain_preset"
    return Result(name, median(mine), "core-ms/clip", median(theirs), of_rounds)


def verdict(measured: Measured) -> str:
    """What tubecell gains over a DataLoader, or that this cannot be told; what limits, what to change, and what a model like
    this takes."""
    lines = [headline(measured)]
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
    return "\n".join(["", *filter(None, lines), f"A loader's first batch came {seconds:.1f} s after it was made."])


def headline(measured: Measured) -> str:
    """The one sentence: what tubecell gains over the best DataLoader, or that this cannot be told; "" where neither is."""
    if doubts := why_not_told(measured):
        what = "how tubecell and a DataLoader compare on these files" if measured.compared else "how fast this machine is"
        return f"Cannot tell {what}: {'; '.join(doubts)}. Run it again when nothing else runs."
    files, best = measured.originals, measured.best_peer
    if files is None or best is None or not measured.compared:
        return ""
    as_they_are, fast = (times(median(of_rounds)) for of_rounds in measured.compared.values())
    built = files.h264_fast
    return (
        f"On these files tubecell gives {as_they_are} x the views of {best.title.split(', R')[0]}, as they are "
        f"(--preset copy), and {fast} x once they are built as h264-fast (the default), which takes "
        f"{built.seconds / built.clips:.2g} s a clip here and makes {built.bytes / files.bytes:.2g} x the bytes."
    )


def why_not_told(measured: Measured) -> list[str]:
    """What forbids to say a ratio: other programs, or rounds that differ too much. Empty where nothing does."""
    found = []
    if measured.neighbours > DISTURBED * usable_cores():
        found.append(f"other programs had up to {measured.neighbours:.1f} of the {usable_cores()} cores in use meanwhile")
    for of_rounds in measured.compared.values():
        if (max(of_rounds) - min(of_rounds)) / median(of_rounds) > UNSTEADY:
            lowest, highest = times(min(of_rounds)), times(max(of_rounds))
            found.append(f"the rounds do not agree: from {lowest} x to {highest} x")
    return found


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
        for preset, built in files.built.items():
            name = f"builder/{preset.replace('-', '_')}"
            found.append(Result(name, built.clips / built.seconds, "clips/s"))
            found.append(Result(f"{name}/bytes", built.bytes, "bytes", files.bytes))
        if built_plain := files.h264_plain:
            beside_it = Result("builder/h264_fast/bytes/vs_plain_preset", files.h264_fast.bytes, "bytes", built_plain.bytes)
            found.append(beside_it)
        found += [peer.result("views/s") for peer in measured.peers]
    found += [part.result("views/s") for part in measured.on_files.values()]
    if best := measured.best_peer:
        for what, name in ((FAST, "vs_dataloader_peer"), (SAME, "vs_dataloader_peer_same_files")):
            if part := measured.on_files.get(what):
                found.append(part.result("views/s", f"loader/libav/r{PEER_VIEWS}/{name}", best))
    for fast, plain in measured.beside_plain:
        prefix = f"loader/libav/r{fast.views_per_clip}"
        found += [fast.result("clips/s", f"{prefix}/vs_plain_preset", plain), own_ms(fast, plain)]
    found += [part.result("views/s") for part in measured.finetuning.values()]
    for ours, theirs in measured.beside_dataloader:
        found.append(ours.result("views/s", f"{ours.name}/vs_dataloader", theirs))
    if measured.finetuning:
        device, official = measured.finetuning["device"], measured.finetuning["official"]
        found.append(device.result("views/s", f"{device.name}/vs_official", official))
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
