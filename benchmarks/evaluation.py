#!/usr/bin/env python3
"""How fast a classifier is evaluated: decoding for S x C views, beside a PyTorch DataLoader, and all of it, beside the model.

    tubecell evaluation                                      5x3 views, ViT-B, 12 generated clips of 10 s
    tubecell evaluation --data DATASET --json evaluation.json
    tubecell evaluation --model vit-s --seconds 20

Decoding: the loader makes all views of a clip from one decode; the peers decode the clip for every view, as the official code
does: a DataLoader over the same bytes with decord2, and our own loader. The whole is what `tubecell evaluate` does with a few
clips, its start included, beside as many passes of the model over views that lie ready. All take turns, round after round;
figures are the rounds' medians, and ratios the medians of the rounds' ratios. Frames are taken at stride 4.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import tempfile
from argparse import ArgumentTypeError
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Literal

import numpy as np

from benchmarks.parts.endless_passes import Endless, EveryView
from benchmarks.parts.evaluation_work import ForwardWork, WholeWork
from benchmarks.parts.generated_dataset import long_clips
from benchmarks.parts.path_parts import LoaderWork
from benchmarks.parts.peers import STRIDE, PeerWork, ViewItems, missing_reader
from benchmarks.parts.program import WithTurns, program
from benchmarks.parts.results import Result, check_numbers, describe_machine, disturbance
from benchmarks.parts.stopwatch import Part, Stopwatch, ratios
from model.classifier import VideoClassifier
from model.config import MODELS
from model.initialization import initialise
from pipeline.sampling import SamplingRecipe
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader
from train.compute.on_cpu import attend_plainly
from train.compute.parallel import Ranks, started
from train.compute.precision import PRECISIONS
from train.predict import windows_and_crops
from train.stages.finetuning import FinetuneConfig

CLASSES = 400
READER = "decord2"  # which the official code has


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(WithTurns):
    """What is measured, and for how long."""

    data: str | None = None
    """The dataset to measure on; by default 12 generated clips of 10 s, 340 x 256, in data/evaluation."""
    clips: int = 12
    """Clips of it to take, spread over it."""
    model: str = "vit-b"
    """One of the named models."""
    views: str = "5x3"
    """Windows and crops of a clip."""
    clips_per_pass: int = 2
    """Clips of a turn of the whole; ViT-B takes half a minute for one on two cores."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes a GPU if there is one."""
    peer: bool = True
    """Compare with a DataLoader, where decord2 is installed."""
    workers: int | None = None
    """Processes that decode; by default those that the loader finds best."""


@dataclass(slots=True)
class Measured:
    """The parts of a run. Of those that decode each view alone a view counts as a clip."""

    decode: Part
    view_items: Part
    model: Part
    whole: Part
    dataloader: Part | None = None
    skipped: list[str] = field(default_factory=list)

    @property
    def parts(self) -> list[Part]:
        return [*filter(None, (self.decode, self.dataloader, self.view_items, self.model, self.whole))]

    def results(self) -> list[Result]:
        """Views/s beside the peers' and the model's, and CPU seconds beside theirs."""
        found = [self.decode.result("views/s", "evaluation/decode")]
        for part, baseline, name in (
            (self.decode, self.dataloader, "evaluation/decode/vs_dataloader"),
            (self.decode, self.view_items, "evaluation/decode/vs_view_items"),
            (self.whole, self.model, "evaluation/whole/vs_model_alone"),
        ):
            if baseline:
                found.append(part.result("views/s", name, baseline))
                found.append(Result(f"{name}/cpu", seconds(part), "CPU s/view", seconds(baseline)))
        return found


@program(Options)
def main(options: Options) -> list[Result]:
    segments, crops = check(options)
    dataset = options.data or str(long_clips())
    manifest, config = Manifest(dataset), MODELS[options.model]
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(options.clips, len(manifest))).astype(np.int64))
    recipe = SamplingRecipe(
        views_per_step=1,
        views_per_clip=1,
        split="all",
        sampling=f"stride:{STRIDE}",
        num_frames=config.num_frames,
        input_size=config.input_size,
        crop="center",
        masks=None,
    )
    with started(options.device) as ranks, ExitStack() as stack:
        size = f"{int(np.median(manifest.width[rows]))} x {int(np.median(manifest.height[rows]))}"
        frames = int(np.median(manifest.num_frames[rows]))
        print(
            f"{describe_machine()}\n{options.model}, {segments} x {crops} views of {config.num_frames} frames of "
            f"{config.input_size} px; {len(rows)} clips of {dataset}, {frames} frames of {size} in the middle",
            flush=True,
        )
        measured = parts(options, manifest, rows, recipe, (segments, crops), ranks, stack)
        Stopwatch(options.seconds, ranks.device).rounds(measured.parts, options.rounds)
    print(table(measured))
    return measured.results()


def check(options: Options) -> tuple[int, int]:
    """-> windows and crops. Raises ValueError, with the flag, for what cannot be."""
    if options.model not in MODELS:
        raise ValueError(f"there is no model {options.model!r}; the models are {', '.join(MODELS)}")
    check_numbers(options, "clips", "clips_per_pass", "rounds", "workers")
    try:
        return windows_and_crops(options.views)
    except ArgumentTypeError as error:
        raise ValueError(f"--views {error}") from None


def parts(
    options: Options,
    manifest: Manifest,
    rows: np.ndarray,
    recipe: SamplingRecipe,
    views: tuple[int, int],
    ranks: Ranks,
    stack: ExitStack,
) -> Measured:
    """All contestants, ready for their turns; the stack closes them."""
    segments, crops = views
    each, device, config = segments * crops, ranks.device, FinetuneConfig()
    config = replace(config, loader=replace(config.loader, workers=options.workers))
    stopwatch = Stopwatch(options.seconds, device)

    def loader(kind: type[Endless], clips: int) -> LoaderWork:
        sampler = kind(views="full", segments=segments, crops=crops, rows=rows)
        work = LoaderWork(manifest.place, recipe, config, stopwatch, sampler=sampler, clips_per_batch=clips, decoder="auto")
        return stack.enter_context(closing(work))

    together = loader(Endless, 1)
    if (missing := missing_reader(READER) if options.peer else "--no-peer") is None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tubecell-evaluation-")))
        peer = PeerWork(ViewItems(files(manifest, rows, folder), READER, recipe, segments, crops), device)
        stack.enter_context(closing(peer))
        dataloader = Part("dataloader", f"DataLoader, {READER}, a view an item", 1, peer)
    model = VideoClassifier(MODELS[options.model], CLASSES).eval()
    initialise(model, seed=0)
    if device.type == "cpu":
        attend_plainly(model)
    model.to(device, PRECISIONS["bf16" if device.type == "cuda" else "fp32"].encoder)
    clips = min(options.clips_per_pass, len(rows))
    forward = ForwardWork(model, together.first.views.clone(), clips, device)
    asked = {"data": manifest.place, "views": views, "workers": options.workers, "resize": None, "decoder": "auto"}
    whole = WholeWork(model, recipe, rows, clips, ranks, **asked)
    measured = Measured(
        Part("decode", f"loader, {each} views of one decode", each, together),
        Part("view_items", "loader, a view an item", 1, loader(EveryView, each)),
        Part("model", "model alone", each, forward),
        Part("whole", "the whole", each, whole),
    )
    if missing is None:
        measured.dataloader = dataloader
    else:
        measured.skipped.append(f"DataLoader with {READER}: {missing}")
    return measured


def files(manifest: Manifest, rows: np.ndarray, folder: Path) -> list[Path]:
    """The clips as files. Raises OSError."""
    reader, found = ShardReader(manifest.root), []
    for row in rows.tolist():
        found.append(folder / f"{row}.mp4")  # whatever it is: FFmpeg looks inside
        found[-1].write_bytes(reader.read(manifest.clip(row)))
    return found


def seconds(part: Part) -> float:
    """CPU time of a view in all processes: where other programs run beside, it tells more than rates do."""
    return median(cores / (rate * part.views_per_clip) for cores, rate in zip(part.cores, part.rates, strict=True))


def table(measured: Measured) -> str:
    """A line a contestant; `cores` are those that it had in use."""
    lines = [f"\n{'part':<36}  {'views/s':>8}  {'spread':>6}  {'cores':>5}  {'CPU ms/view':>11}"]
    for part in measured.parts:
        told = ""
        if part in (measured.dataloader, measured.view_items):
            told = f"{median(ratios(measured.decode, part, in_views=True)):.1f} x slower than from one decode"
        elif part.name == "whole":
            told = f"{median(ratios(part, measured.model, in_views=True)):.1%} of the model alone"
        lines.append(
            f"{part.title:<36}  {part.views:>8.4g}  {part.spread:>6.0%}  {median(part.cores):>5.1f}  "
            f"{1000 * seconds(part):>11.4g}  {told}".rstrip()
        )
    lines += [f"not measured: {what}" for what in measured.skipped]
    return "\n".join(lines + disturbance(max(median(part.neighbours) for part in measured.parts)))


if __name__ == "__main__":
    sys.exit(main())
