#!/usr/bin/env python3
"""What an encoder's features tell without training: k nearest neighbours among the clips of a dataset's training split.

    tubecell knn RUN_OR_WEIGHTS --data DATASET --split val --out FOLDER
    torchrun --nproc-per-node 8 -m tubecell knn RUN_OR_WEIGHTS --data DATASET --split val --out FOLDER --k 10 20 100 200

DINO's protocol: cosine similarity, temperature 0.07, and k = 10, 20, 100 and 200, of which it tells all. A clip's feature is
what the weights give a classifier: the mean over a view's tokens after the encoder's last norm, of fine-tuned weights the norm
of the mean, of an attentive probe what its query finds; of several views it is the mean. Clips without a label are left out,
and counted.

FOLDER gets features.parquet (row, key, feature) and knn.json, with all that decided the figures. Killed, the same command goes
on where it was; asked again, for another --split, --k or --temperature, it decodes only what it has not seen.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.video_encoder import VideoEncoder
from model.weights import Weights
from pipeline.console import check_printed, complain, exit_status
from pipeline.labels import Labels
from pipeline.loader import ClipLoader, LoaderError
from pipeline.progress import Progress
from pipeline.sampling import EvaluationSampler, SamplingRecipe
from pipeline.sampling.splits import ALL, checked_split, rows_of_split
from pipeline.storage.files import write_durably
from pipeline.storage.manifest import Manifest
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from pipeline.version import git_commit, version
from train.accuracy.neighbours import votes
from train.accuracy.parts import PARTS, Parts, lists
from train.checkpoint.descent import descent_of, encoder_sizes, fingerprint
from train.classes import check_classes
from train.compute.parallel import Ranks, started
from train.demos import weights as released
from train.demos.prediction import VIEWS_AT_ONCE
from train.predict import windows_and_crops

FILE = "features.parquet"
PART_CLIPS, PART_SECONDS = 512, 60.0  # a part of the features, whichever comes first: what a kill costs
SHOWN = 8  # names in a line
Told = list[tuple[str, str, str]]  # key, reason and detail of clips that could not be decoded


@dataclass(frozen=True, slots=True)
class Clips:
    """Those of a split."""

    split: str
    rows: np.ndarray
    """Int64 (n,), with a label."""
    labels: np.ndarray
    """Int64 (n,)."""
    unlabelled: int

    def facts(self, there: np.ndarray) -> dict[str, Any]:
        """With the features of these rows."""
        clips = int(np.isin(self.rows, there).sum())
        return {"split": self.split, "clips": clips, "of": len(self.rows), "unlabelled": self.unlabelled}


@exit_status(LoaderError, name="knn")
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    released.add_options(parser, positional=True)
    parser.add_argument("--data", required=True, metavar="DATASET", help="folder or URL")
    parser.add_argument("--split", default="val", help="whose clips are classified: one, or several as val,test (default: val)")
    parser.add_argument("--train-split", default="train", help="whose clips are their neighbours (default: train)")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20, 100, 200], help="neighbours (default: 10 20 100 200)")
    parser.add_argument("--temperature", type=float, default=0.07, help="of their votes (default: 0.07)")
    parser.add_argument(
        "--views", type=windows_and_crops, default=(1, 1), metavar="SxC", help="windows and crops of a clip (default: 1x1)"
    )
    parser.add_argument("--sparse", action="store_true", help="spread the frames of each window over the whole clip")
    parser.add_argument(
        "--sampling", default="manifest", help="distance of frames, as stride:4 (default: as the dataset was built)"
    )
    parser.add_argument("--out", type=on_disk, required=True, metavar="FOLDER", help="for features.parquet and knn.json")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes of a rank (default: found while it works)")
    parser.add_argument(
        "--decoder", choices=("auto", "libav", "dali"), default="auto", help="of the clips, as --loader.decoder (default: auto)"
    )
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers {options.workers} must be at least 1")
    options.k = sorted(set(options.k))
    refuse_dataset("--out", options.out)
    with started(options.device, flag="--device") as ranks:
        look_around(options, ranks)
    check_printed()


def look_around(options: argparse.Namespace, ranks: Ranks) -> None:
    """All ranks call it. Raises ValueError for weights, data and splits that do not fit."""
    began, weights, manifest = time.perf_counter(), released.read(options), Manifest(options.data)
    train, others, num_classes = clips_of(manifest, options, ranks)
    recipe = SamplingRecipe(
        views_per_step=ranks.world_size,
        views_per_clip=1,
        split=ALL,
        sampling=options.sampling,
        num_frames=weights.sizes["num_frames"],
        input_size=weights.sizes["input_size"],
        temporal="tsn" if options.sparse else "stride",
        crop="center",
        masks=None,
    )
    asked = {
        "weights": ranks.first(lambda: fingerprint(weights.tensors)),
        "model": encoder_sizes(weights),
        "features": features_of(weights),
        "dataset": f"{manifest.fingerprint}, version {manifest.version}",
        "views": "x".join(map(str, options.views)) + (" sparse" if options.sparse else ""),
        "sampling": options.sampling,
        "view": f"{recipe.num_frames} frames of {recipe.input_size} px, center crop, ImageNet normalisation",
        "precision": options.precision or ("bf16" if ranks.device.type == "cuda" else "fp32"),
        "decoder": options.decoder,
    }
    there = {path.name for path in options.out.iterdir()} if options.out.is_dir() else set()
    if there and not there & {FILE, PARTS}:
        raise ValueError(f"--out {options.out} has files, and none of them is {FILE}; give a folder of its own")
    cache = Parts(options.out, FILE, asked, "features")
    rows = np.sort(np.concatenate([train.rows, others.rows]))
    left = np.setdiff1d(rows, ranks.first(cache.rows))
    if ranks.rank == 0:
        print(weights)
        print(f"{len(rows)} clips, of which {len(rows) - len(left)} were there, {asked['views']} views of each", flush=True)
    missing: Told = []
    if len(left):
        encoder = released.encoder_on(weights, asked["precision"], ranks)
        encoder.reset_classifier(0)
        missing = [*chain(*ranks.gather(fill(cache, encoder, recipe, left, options, ranks)))]
    ranks.gather(None)  # every part is written
    if ranks.rank == 0:
        facts = {
            "data": options.data,
            "weights": options.weights,
            "asked": asked,
            "descends_from": descent_of(weights),
            "tubecell": version(),
            "commit": git_commit(),
            "torch": torch.__version__,
        }
        report(options, cache, (train, others), num_classes, missing, facts, ranks, began)
    ranks.gather(None)


def clips_of(manifest: Manifest, options: argparse.Namespace, ranks: Ranks) -> tuple[Clips, Clips, int]:
    """The training clips, the others, and the number of classes. Says what is left out. Raises ValueError for splits that have
    clips in common, and for clips without classes, or with several each."""
    names = [checked_split(options.train_split), checked_split(options.split)]
    labels, found = Labels(manifest, names[0]), []
    seen, _ = check_classes(labels, manifest, names[0])
    for split, flag in zip(names, ("--train-split", "--split"), strict=True):
        rows = rows_of_split(manifest, split)
        known = (of := labels.of(rows)) >= 0
        if not known.any():
            raise ValueError(f"{flag} {split}: no clip of it in {manifest.place} has a label; give another split")
        found.append(Clips(split, rows[known], of[known], int((~known).sum())))
        if ranks.rank == 0 and not known.all():
            complain(f"{int((~known).sum()):,} of {len(rows):,} clips of split {split} have no label: they are left out")
    train, others = found
    if len(both := np.intersect1d(train.rows, others.rows)):
        raise ValueError(
            f"--split {others.split} and --train-split {train.split} have {len(both):,} clips in common: each would be its own "
            "nearest neighbour; give splits that have none"
        )
    if ranks.rank == 0 and (new := int((~np.isin(others.labels, seen)).sum())):
        complain(f"{new:,} of {len(others.rows):,} clips have a label that no training clip has: they count as wrong")
    return train, others, len(labels.names)


def features_of(weights: Weights) -> str:
    """What a feature is, in words."""
    tensors = weights.encoder()
    if "pooler.query_tokens" in tensors:
        return "what an attentive probe's query finds among the tokens"
    norm = "after the last norm" if "norm.weight" in tensors else "after the last block"
    return f"mean over the tokens {norm}" + (", then fc_norm" if "fc_norm.weight" in tensors else "")


@torch.inference_mode()
def fill(
    cache: Parts,
    encoder: VideoEncoder,
    recipe: SamplingRecipe,
    rows: np.ndarray,
    options: argparse.Namespace,
    ranks: Ranks,
) -> Told:
    """Add the features of this rank's share of the rows -> its clips that could not be decoded."""
    windows, crops = options.views
    at_once = VIEWS_AT_ONCE[ranks.device.type]
    found: list[tuple[int, str, np.ndarray]] = []
    written = time.monotonic()
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
                decoder=options.decoder,
            )
        ) as loader,
        Progress(total=len(rows), unit="clip", quiet=ranks.rank != 0) as bar,
    ):
        for batch in loader:
            there = batch.weight.cpu().nonzero().squeeze(1)
            if len(there):
                some = batch.of_clips(there.to(batch.views.device)) if len(there) < len(batch.rows) else batch
                each_nD = torch.cat([encoder(views).float() for views in some.views.split(at_once)])
                features = each_nD.unflatten(0, (len(there), -1)).mean(1).cpu().numpy()
                found += zip(some.rows.tolist(), some.keys, features, strict=True)
            if found and (len(found) >= PART_CLIPS or time.monotonic() - written > PART_SECONDS):
                cache.add(table_of(found))
                found, written = [], time.monotonic()
            bar.update(min(len(batch.rows) * ranks.world_size, len(rows) - bar.n))
        if found:
            cache.add(table_of(found))
        return [(failed.key, str(failed.reason), failed.detail) for failed in loader.missing]


def table_of(found: Sequence[tuple[int, str, np.ndarray]]) -> pa.Table:
    rows, keys, features = zip(*found, strict=True)
    return pa.table({"row": pa.array(rows, pa.int64()), "key": pa.array(keys), "feature": lists(np.stack(features))})


def report(
    options: argparse.Namespace,
    cache: Parts,
    splits: tuple[Clips, Clips],
    num_classes: int,
    missing: Told,
    facts: dict[str, Any],
    ranks: Ranks,
    began: float,
) -> None:
    """Rank 0 lets the neighbours vote, writes what they found, and says it."""
    table = cache.whole()
    there = np.empty(0, np.int64) if table is None else table["row"].to_numpy()
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    for clips in splits:
        known = np.isin(clips.rows, there)
        if table is None or not known.any():
            raise ValueError(f"no clip of split {clips.split} could be decoded: {listed([key for key, *_ in missing])}")
        features = table["feature"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        chosen = features[np.searchsorted(there, clips.rows[known])]
        given.append((torch.from_numpy(chosen).to(ranks.device), torch.from_numpy(clips.labels[known]).to(ranks.device)))
    found = votes(*given[0], *given[1], options.k, options.temperature, num_classes)
    train, others = (clips.facts(there) for clips in splits)
    told = {
        "found": [asdict(vote) for vote in found],
        "protocol": "cosine similarity, votes weighted by exp(similarity / temperature)",
        "temperature": options.temperature,
        "classes": num_classes,
        "train": train,
        "classified": others,
        "missing": [dict(zip(("key", "reason", "detail"), each, strict=True)) for each in missing],
        **facts,
        "seconds": time.perf_counter() - began,
    }
    write_durably(options.out / "knn.json", json.dumps(told, indent=1).encode())
    print(f"\n{'k':>5}{'top-1':>9}{'top-5':>9}")
    for vote in found:
        fewer = f"  of all {vote.of} training clips" if vote.of < vote.k else ""
        print(f"{vote.k:>5}{vote.top1:>9.2%}{vote.top5:>9.2%}{fewer}")
    lost = f"; not decoded: {listed([key for key, *_ in missing])}" if missing else ""
    print(
        released.printable(
            f"of {others['clips']} of {others['of']} clips, by {train['clips']} of {train['of']} training clips{lost}"
        )
    )
    print(f"\n{released.printable(str(options.out))}/knn.json", flush=True)


def listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} others" if len(keys) > SHOWN else "")


if __name__ == "__main__":
    sys.exit(main())
