"""tubecell retrieve evaluate: which text finds which video, and which video which text, by a run that was trained for it.

    tubecell retrieve evaluate RUN --data DATASET --split test --out RESULT
    torchrun --nproc-per-node 8 -m tubecell retrieve evaluate RUN --split val --key best

Every clip of the split that has a caption is looked at once, as in the run's own evaluation, and held against all captions of
these. RUN alone is needed: it keeps the tokenizer. OUT gets evaluation.json (R@1, R@5, R@10, ranks, mAP, both ways),
evaluation.html with texts and the frames that they found, and videos.parquet, the feature of each clip. Killed, the same
command goes on where it was. Clips that cannot be decoded are named, and are in no figure; asked again, they are tried again.
"""

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from model.two_towers import TwoTowers
from pipeline.captions import Captions
from pipeline.loader import LoaderError
from pipeline.progress import Progress
from pipeline.sampling import EvaluationSampler
from pipeline.storage.manifest import Manifest
from pipeline.storage.remote import on_disk
from train.accuracy.evaluate_command import evaluate_command
from train.accuracy.parts import Parts, lists
from train.checkpoint.descent import fingerprint
from train.checkpoint.source import BEST, read_once
from train.compute.parallel import Ranks
from train.config import LoaderConfig
from train.demos.weights import on_ranks
from train.parts import open_loader
from train.retrieval.evaluated_run import Recipes, begun_as, built, text_folder_of
from train.retrieval.evaluation_report import report
from train.retrieval.held_out import middle_view, with_caption
from train.retrieval.pairs import paired, seen

FILE = "videos.parquet"
AT_ONCE = {"cpu": 8, "cuda": 64}  # clips, and texts, of a forward pass
PART_CLIPS, PART_SECONDS = 512, 60.0  # a part of the features, whichever comes first: what a kill costs
Told = list[tuple[str, str, str]]  # key, reason and detail of clips that could not be decoded


def main(arguments: Sequence[str], recipes: Recipes) -> int:
    """The exit status."""
    return evaluate_command(
        "retrieve evaluate", arguments, parsed, lambda options, ranks: evaluate(options, recipes, ranks), LoaderError
    )


def parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "retrieve evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", type=on_disk, help="folder of a run of `tubecell retrieve`")
    parser.add_argument("--key", choices=("model", "model_ema", *BEST), help="which of its weights (default: the last)")
    parser.add_argument("--data", metavar="DATASET", help="folder or URL (default: the run's)")
    parser.add_argument("--split", help="one, several as val,test, or all (default: the run's --evaluate-split)")
    parser.add_argument("--captions", nargs="+", metavar="FIELD", help="of the dataset's `extra` (default: the run's)")
    parser.add_argument("--text", metavar="TOWER", help="folder of the text tower, where the run kept nothing of it")
    parser.add_argument("--out", type=on_disk, metavar="FOLDER", help="default: evaluations/RUN-SPLIT")
    parser.add_argument("--workers", type=int, metavar="N", help="decoding processes of a rank (default: found while it works)")
    parser.add_argument("--decoder", choices=("auto", "libav", "dali"), default="auto", help="of the clips (default: auto)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if there is one")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 on CUDA, fp32 on a CPU")
    options = parser.parse_args(words)
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers {options.workers} must be at least 1")
    if options.out is None:
        names = (os.path.basename(os.path.normpath(options.run)), options.key, (options.split or "").replace(",", "+"))
        options.out = Path("evaluations") / "-".join(filter(None, names))
    return options


def evaluate(options: argparse.Namespace, recipes: Recipes, ranks: Ranks) -> None:
    """All ranks call it. Raises ValueError for what is no run of retrieval, and for a dataset without captions."""
    config = begun_as(
        options.run,
        recipes,
        data=options.data,
        evaluate_split=options.split,
        captions=tuple(options.captions) if options.captions else None,
        text=options.text,
        loader=LoaderConfig(workers=options.workers, decoder=options.decoder),
    )
    folder = text_folder_of(options.run, config)
    weights = read_once(options.run, key=options.key)
    manifest = Manifest(config.place)
    rows = ranks.first(lambda: with_caption(manifest, Captions(manifest, config.captions), config.evaluate_split, "--split"))
    captions, recipe = Captions(manifest, config.captions), middle_view(config)
    precision = options.precision or ("bf16" if ranks.device.type == "cuda" else "fp32")
    asked = {
        "weights": ranks.first(lambda: fingerprint(weights.tensors)),
        "dataset": f"{manifest.fingerprint}, version {manifest.version}",
        "split": config.evaluate_split,
        "captions": ", ".join(config.captions),
        "view": f"{recipe.num_frames} frames of {recipe.input_size} px, {recipe.temporal}, {recipe.sampling}",
        "precision": precision,
        "decoder": options.decoder,
    }
    parts = Parts(options.out, FILE, asked, "features")
    left = np.setdiff1d(rows, ranks.first(parts.rows))
    if ranks.rank == 0:
        print(weights)
        print(f"text tower: {folder.place}" + (f", which the run kept of {folder.facts['from']}" if folder.is_kept else ""))
        there = f", of which {len(rows) - len(left)} were there" if len(left) < len(rows) else ""
        print(f"{len(rows)} clips with a caption of split {config.evaluate_split}{there}", flush=True)
    began = time.perf_counter()
    model = on_ranks(weights, ranks, lambda whole: built(config, folder, whole, precision, ranks))
    missing = look(model, config, left, parts, ranks) if len(left) else []
    ranks.gather(None)  # every part is written
    clips = ranks.first(lambda: features_of(parts.whole()))
    nothing = clips[0][:0], clips[1][:0]
    with torch.inference_mode():
        pairs = paired(model, folder, captions, nothing if ranks.rank else clips, ranks, AT_ONCE[ranks.device.type])
    figures = pairs.figures(ranks)
    if ranks.rank == 0:
        facts = {
            "of": len(rows),
            "missing": [dict(zip(("key", "reason", "detail"), each, strict=True)) for each in missing],
            "split": config.evaluate_split,
            "data": config.place,
            "weights": f"{options.key or 'last'} weights of {options.run}",
            "asked": asked,
            "seconds": time.perf_counter() - began,
        }
        report(options.out, options.run.resolve().name, manifest, pairs, figures, facts)
    ranks.gather(None)


@torch.inference_mode()
def look(model: TwoTowers, config: Any, rows: np.ndarray, parts: Parts, ranks: Ranks) -> Told:
    """Fill `parts` with this rank's share of the rows -> all ranks' clips that could not be decoded."""
    kept, written = list[tuple[list[int], list[str], np.ndarray]](), time.monotonic()
    recipe, at_once = replace(middle_view(config), views_per_step=ranks.world_size), AT_ONCE[ranks.device.type]
    with (
        closing(open_loader(config, ranks, recipe, sampler=EvaluationSampler(rows=rows), clips_per_batch=at_once)) as loader,
        Progress(total=len(rows), unit="clip", quiet=ranks.rank != 0) as bar,
    ):
        for batch in seen(model, loader):
            if not np.isfinite(batch[2]).all():
                raise ValueError("the features are not finite; try --precision fp32")
            kept += [batch] if batch[0] else []
            if kept and (sum(len(each[0]) for each in kept) >= PART_CLIPS or time.monotonic() - written > PART_SECONDS):
                parts.add(table_of(kept))
                kept, written = [], time.monotonic()
            bar.update(min(len(batch[0]) * ranks.world_size, len(rows) - bar.n))
        if kept:
            parts.add(table_of(kept))
        missing = [(clip.key, str(clip.reason), clip.detail) for clip in loader.missing]
    return [*chain(*ranks.gather(missing))]


def table_of(batches: Sequence[tuple[list[int], list[str], np.ndarray]]) -> pa.Table:
    """A line for each clip."""
    rows, keys, features = zip(*batches, strict=True)
    return pa.table({"row": [*chain(*rows)], "key": [*chain(*keys)], "feature": lists(np.concatenate(features))})


def features_of(table: pa.Table | None) -> tuple[np.ndarray, np.ndarray]:
    """Rows (V,) and features (V, E)."""
    if table is None:
        raise ValueError("no clip with a caption could be decoded, so there is nothing to look for")
    column = table["feature"].combine_chunks()
    return table["row"].to_numpy(), column.flatten().to_numpy().reshape(len(column), -1)
