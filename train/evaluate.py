#!/usr/bin/env python3
"""How often a classifier is right, on the clips of a dataset: top-1, top-5, mean-class, by class and clip by clip.

    tubecell evaluate RUN_OR_WEIGHTS --data DATASET --split test --views 5x3
    torchrun --nproc-per-node 8 train/evaluate.py RUN_OR_WEIGHTS --data DATASET --split test --views 2x3 --sparse

Each clip is decoded once, for all of its S windows and C crops (the official tests: 5x3 for Kinetics, 2x3 --sparse for
Something-Something), and its probabilities are the mean over these. The dataset's classes are looked up by name among those of
the weights; where a file has no names, they are its classes in their order.

OUT gets evaluation.json, evaluation.html (classes, what is taken for what, pictures of the worst clips), examples.png (frames
of clips that were told right, and of others) and predictions.parquet. Killed, the same command goes on where it was. Clips that
cannot be decoded are named, and are in no figure; asked again, they are tried again.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.weights import Weights
from pipeline.console import check_printed, exit_status
from pipeline.labels import Labels
from pipeline.loader import ClipLoader, LoaderError
from pipeline.official_views import OfficialDecoder
from pipeline.progress import Progress
from pipeline.sampling import EvaluationSampler, SamplingRecipe
from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.storage.files import write_durably
from pipeline.storage.manifest import Manifest
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from train.accuracy.accuracy_page import page
from train.accuracy.examples import draw_examples
from train.accuracy.predictions import Predictions
from train.accuracy.scores import ClipScores, view_probabilities
from train.compute.parallel import Ranks, started
from train.demos import weights as released
from train.demos.prediction import SPARSE_WINDOWS, VIEWS_AT_ONCE, class_names
from train.predict import count, windows_and_crops

DENSE, SPARSE = (5, 3), (SPARSE_WINDOWS, 3)  # official views, of Kinetics and Something-Something
PART_CLIPS, PART_SECONDS = 512, 60.0  # a part of the predictions, whichever comes first: what a kill costs
SHOWN = 8  # names in a line
Told = list[tuple[str, str, str]]  # key, reason and detail of clips that could not be decoded


@exit_status(LoaderError, name="evaluate")
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    released.add_options(parser, positional=True)
    parser.add_argument("--data", required=True, metavar="DATASET", help="folder or URL")
    parser.add_argument("--split", default="test", help="whose clips: one, several as val,test, or all (default: test)")
    parser.add_argument("--views", type=windows_and_crops, metavar="SxC", help="windows and crops (5x3; with --sparse 2x3)")
    parser.add_argument("--sparse", action="store_true", help="spread the frames of each window over the whole clip")
    parser.add_argument(
        "--sampling", default="manifest", help="distance of frames, as stride:4 (default: as the dataset was built)"
    )
    parser.add_argument(
        "--resize",
        choices=("antialiased", "official"),
        default="antialiased",
        help="how crops become views: antialiased, as in official pre-training, or as in the official tests (RESIZE_HELP)",
    )
    parser.add_argument(
        "--head", choices=("all", "dataset"), default="all", help="let all classes compete, or those of the dataset alone"
    )
    parser.add_argument(
        "--labels", type=on_disk, metavar="FILE", help="names of the weights' classes, if not their own: JSON, or a line each"
    )
    parser.add_argument("--out", type=on_disk, metavar="FOLDER", help="default: evaluations/WEIGHTS-SPLIT-VIEWS")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes of a rank (default: found while it works)")
    parser.add_argument(
        "--decoder", choices=("auto", "libav", "dali"), default="auto", help="of the clips, as --loader.decoder (default: auto)"
    )
    options = parser.parse_args(arguments)
    if options.resize == "official" and options.decoder == "dali":
        raise ValueError("--decoder dali and --resize official: DALI resizes crops alone, not whole frames; leave one out")
    options.views = options.views or (SPARSE if options.sparse else DENSE)
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers {options.workers} must be at least 1")
    if options.out is None:
        views = "x".join(map(str, options.views)) + "-sparse" * options.sparse + "-official" * (options.resize == "official")
        name = "-".join(filter(None, (os.path.basename(os.path.normpath(options.weights)), options.key)))
        options.out = Path("evaluations") / f"{name}-{options.split.replace(',', '+')}-{views}"
    refuse_dataset("--out", options.out)
    with started(options.device, flag="--device") as ranks:
        evaluate(options, ranks)
    check_printed()


def evaluate(options: argparse.Namespace, ranks: Ranks) -> None:
    """All ranks call it. Raises ValueError for weights, data and views that do not fit each other."""
    weights = released.read(options)  # on rank 0; the others know what it is
    if weights.kind != "classifier":
        other = "score-detections" if weights.kind == "detector" else "retrieve evaluate" if weights.has_texts else None
        instead = f": `tubecell {other}` takes it" if other else ""
        raise ValueError(f"{weights.place} has no head of classes of views: give weights of a fine-tuned model{instead}")
    manifest, split = Manifest(options.data), checked_split(options.split)
    rows = rows_of_split(manifest, split)
    names, columns = classes_of(weights, Labels(manifest, split), options)
    recipe = SamplingRecipe(
        views_per_step=ranks.world_size,
        views_per_clip=1,
        split=split,
        sampling=options.sampling,
        num_frames=weights.config.num_frames,
        input_size=weights.config.input_size,
        temporal="tsn" if options.sparse else "stride",
        crop="center",
        masks=None,
    )
    precision = options.precision or ("bf16" if ranks.device.type == "cuda" else "fp32")
    asked = {
        "weights": ranks.first(lambda: digest(weights)),
        "dataset": f"{manifest.fingerprint}, version {manifest.version}",
        "split": split,
        "views": "x".join(map(str, options.views)) + (" sparse" if options.sparse else ""),
        "sampling": options.sampling,
        "view": f"{recipe.num_frames} frames of {weights.config.input_size} px",
        "classes": hashlib.blake2b(json.dumps(names).encode(), digest_size=8).hexdigest(),
        "precision": precision,
    }
    if options.resize == "official":
        asked["resize"] = "official"
    if options.decoder == "dali":
        asked["decoder"] = "dali"
    predictions = Predictions(options.out, asked, names)
    left = np.setdiff1d(rows, ranks.first(predictions.rows))
    if ranks.rank == 0:
        print(weights)
        there = f", of which {len(rows) - len(left)} were there" if len(left) < len(rows) else ""
        print(f"{len(rows)} clips of split {split}, {asked['views']} views of each{there}", flush=True)
    began = time.perf_counter()
    missing: Told = []
    if len(left):
        model = released.on_ranks(weights, ranks, lambda whole: released.build(whole, options))
        chosen = None if columns is None else torch.tensor(columns, device=ranks.device)
        missing = [*chain(*ranks.gather(predict(model, recipe, left, names, chosen, predictions, options, ranks)))]
    ranks.gather(None)  # every part is written
    if ranks.rank == 0:
        report(options, manifest, predictions, names, asked, len(rows), missing, time.perf_counter() - began)
    ranks.gather(None)


def classes_of(weights: Weights, labels: Labels, options: argparse.Namespace) -> tuple[list[str], list[int] | None]:
    """Names of the classes that compete, and their places in the head, None for all of it.

    Raises ValueError if the dataset has no labels, clips with several, or none that the weights know; and for weights without
    names that have another number of classes than the dataset.
    """
    if labels.kind == "none":
        raise ValueError(f"--data {options.data}: the clips have no labels; build it with labels")
    if labels.kind == "multi":
        raise ValueError(f"--data {options.data}: clips have several labels each; accuracy is of one label a clip")
    if weights.labels is None and options.labels is None:
        if len(labels.names) != weights.num_classes:
            raise ValueError(
                f"{weights.place} has {weights.num_classes} classes without names, and {options.data} has {len(labels.names)}: "
                "--labels FILE names them"
            )
        return labels.names, None
    names = class_names(options.labels, weights)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{options.labels or weights.place} names two classes {twice!r}")
    if not set(names) & set(labels.names):
        raise ValueError(
            f"{options.data} has classes such as {labels.names[0]!r}, and {weights.place} such as {names[0]!r}: none is of both"
        )
    if options.head == "all":
        return names, None
    columns = [place for place, name in enumerate(names) if name in set(labels.names)]
    return [names[place] for place in columns], columns


@torch.inference_mode()
def predict(
    model: nn.Module,
    recipe: SamplingRecipe,
    rows: np.ndarray,
    names: list[str],
    columns: Tensor | None,
    predictions: Predictions,
    options: argparse.Namespace,
    ranks: Ranks,
) -> Told:
    """Fill `predictions` with this rank's share of the rows -> its clips that could not be decoded."""
    windows, crops = options.views
    at_once = VIEWS_AT_ONCE[ranks.device.type]
    scores, found, written = ClipScores(), list[int](), time.monotonic()
    with (
        closing(
            ClipLoader(
                options.data,
                recipe,
                sampler=EvaluationSampler(views="full", segments=windows, crops=crops, rows=rows),
                rank=ranks.rank,
                world_size=ranks.world_size,
                device=ranks.device,
                clips_per_batch=max(1, at_once // (windows * crops)),
                workers=options.workers,
                decoder=OfficialDecoder(crops) if options.resize == "official" else options.decoder,
                label_map=names,
            )
        ) as loader,
        Progress(total=len(rows), unit="clip", quiet=ranks.rank != 0) as bar,
    ):
        for batch in loader:
            there = batch.weight.cpu().nonzero().squeeze(1)
            if len(there):
                some = batch.of_clips(there.to(batch.views.device)) if len(there) < len(batch.rows) else batch
                each = view_probabilities(model, some.views, at_once, columns).reshape(len(there), windows * crops, -1)
                for key, label, row, clip in zip(some.keys, some.labels.tolist(), some.rows.tolist(), each, strict=True):
                    scores.add(key, label, range(len(clip)), clip)
                    found.append(row)
            if found and (len(found) >= PART_CLIPS or time.monotonic() - written > PART_SECONDS):
                predictions.add(np.array(found), scores.merged())
                scores, found, written = ClipScores(), [], time.monotonic()
            bar.update(min(len(batch.rows) * ranks.world_size, len(rows) - bar.n))
        if found:
            predictions.add(np.array(found), scores.merged())
        return [(failed.key, str(failed.reason), failed.detail) for failed in loader.missing]


def report(
    options: argparse.Namespace,
    manifest: Manifest,
    predictions: Predictions,
    names: list[str],
    asked: dict[str, Any],
    of: int,
    missing: Told,
    seconds: float,
) -> None:
    """Rank 0 writes what was found, and says it. `of` clips there were."""
    options.out.mkdir(parents=True, exist_ok=True)
    table = predictions.whole()
    accuracy = predictions.accuracy(table)
    classes: list[dict[str, Any]] = [
        {"name": name, "clips": int(clips), "right": int(right), "within_5": int(within), "taken_for_it": int(taken)}
        for name, clips, right, within, taken in zip(
            names, accuracy.clips, accuracy.right, accuracy.within, accuracy.taken, strict=True
        )
    ]
    figures = {name: value if np.isfinite(value) else None for name, value in accuracy.figures().items()}
    found = {
        **figures,
        "top1_interval": accuracy.top1_interval,
        "clips": accuracy.num_clips,
        "of": of,
        "unlabelled": len(table) - accuracy.num_clips,
        "missing": [dict(zip(("key", "reason", "detail"), each, strict=True)) for each in missing],
        "weights": options.weights,
        "data": options.data,
        "asked": asked,
        "seconds": seconds,
        "classes": classes,
    }
    write_durably(options.out / "evaluation.json", json.dumps(found, indent=1).encode())
    write_durably(options.out / "evaluation.html", page(found, table, names, manifest).encode())
    (options.out / "examples.png").unlink(missing_ok=True)  # of clips that could be decoded before
    drawn = draw_examples(options.out / "examples.png", table, manifest)
    told = {"top1": "top-1", "top5": "top-5", "mean_class": "mean class"}
    print()
    for name, value in figures.items():
        low, high = accuracy.top1_interval
        between = f"   95 %: {low:.1%} to {high:.1%}" if name == "top1" and value is not None else ""
        print(f"{told[name]:<12}{'–' if value is None else f'{value:.2%}':>9}{between}")
    lost = f"; not decoded: {listed([key for key, *_ in missing])}" if missing else ""
    print(released.printable(f"of {accuracy.num_clips} of {of} clips{lost}"))
    if unlabelled := found["unlabelled"]:
        print(f"without a label that the weights know, and in no figure: {count(unlabelled, 'clip')}")
    worst = sorted((each for each in classes if each["clips"]), key=lambda each: each["right"] / each["clips"])
    if len(worst) > 1:
        print(f"\n{'clips':>7}{'top-1':>9}  worst classes")
        for each in worst[:SHOWN]:
            print(f"{each['clips']:>7}{each['right'] / each['clips']:>9.1%}  {released.printable(each['name'])}")
    print(f"\n{released.printable(str(options.out))}/evaluation.html{', examples.png' if drawn else ''}", flush=True)


def listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} others" if len(keys) > SHOWN else "")


def digest(weights: Weights) -> str:
    """Of names and bytes: 1.6 s of CPU a gigabyte."""
    state = hashlib.blake2b(digest_size=8)
    for name in sorted(weights.tensors):
        tensor = weights.tensors[name].contiguous()
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
