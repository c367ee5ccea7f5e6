#!/usr/bin/env python3
"""Features of sliding windows over videos, or over a dataset: what detectors of actions, probes and searches begin with.

    tubecell extract-features VIDEOS --init vit_g_k710_ft.pth --out FEATURES --preset thumos14
    torchrun --nproc-per-node 8 train/extract_features.py DATASET --init RUN --out FEATURES --window 16 --step 4 --stride 64

VIDEOS are files, folders of them, and lists (.txt, a path a line). Of each, OUT/NAME.npy has a row a window, float32, as
ActionFormer reads it: window w has --window frames from frame w x --stride on, --step apart, and what is left at the end is in
none. A row is what a fine-tuned model's head is given: the mean of all tokens, then its last norm (fc_norm; of pre-trained
weights the norm of every token, then the mean). With --tokens it is all tokens after the last block and, if the weights have
one, the norm of every token; of fine-tuned weights fc_norm of their mean is the row without --tokens.

--preset thumos14 and fineaction are the official script: 16 frames at step 1, a window every 4th or every 16th frame, frames
squashed to a square, values in [0, 1] without ImageNet's mean and deviation, fp32. (Training has step 4, crops and ImageNet's
values, which is what you get without a preset.) What is given beside a preset takes its part's place; --precision bf16 is three
times as fast on a CPU with AMX, and 0.35 % off (ViT-S, relative L2).

Killed, the same command goes on with the next video; features of another kind are refused. A video's are the same for any
number of ranks and, on a CPU, for any --batch: bit for bit. Those that cannot be decoded are named, and then it ends with 1.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import av
import torch

from model.video_encoder import for_encoder
from pipeline.console import check_printed, complain, exit_status
from pipeline.machine import usable_cores
from pipeline.progress import Progress
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from pipeline.version import version
from train.checkpoint.descent import encoder_sizes, fingerprint
from train.compute.parallel import Ranks, started
from train.demos import weights as released
from train.features.extraction import Extraction
from train.features.folder import FORMATS, VIDEOS, FeatureFolder
from train.features.stream import WindowStream
from train.features.videos import ListedVideo, find_videos, opener, shares
from train.features.windows import PRESETS, FrameView, Windows
from train.predict import count

DEFAULTS: dict[str, Any] = {"step": 4, "resize": "crop", "normalise": "imagenet"}
BATCH = {"cpu": 2, "cuda": 32}
THREADS = {"cpu": 1, "cuda": 4}  # at most: on a CPU the model has most of the work
MOST_FPS = 1000
SHOWN = 8  # videos that are named


@exit_status(name="extract-features")
def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", metavar="VIDEOS_OR_DATASET", help="files, folders, lists; or one dataset, its URL")
    released.add_options(parser, flag="--init")
    parser.add_argument("--out", type=on_disk, required=True, metavar="FOLDER", help="for a file a video, and what they are of")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="as the official script has it for these datasets")
    parser.add_argument("--window", type=int, metavar="N", help="frames of a window (default: as the weights were trained)")
    parser.add_argument("--step", type=int, metavar="N", help="from frame to frame of a window (default: 4)")
    parser.add_argument("--stride", type=int, metavar="N", help="frames from window to window (default: they lie end to end)")
    parser.add_argument("--fps", type=float, metavar="R", help="count frames after resampling to R a second (default: do not)")
    parser.add_argument("--resize", choices=("crop", "squash"), help="the middle square, antialiased, or all of it (crop)")
    parser.add_argument("--normalise", choices=("imagenet", "none"), help="as in training, or values in [0, 1] (imagenet)")
    parser.add_argument("--short", choices=("reject", "repeat"), default="reject", help="videos shorter than a window (reject)")
    parser.add_argument("--tokens", action="store_true", help="those of each window, instead of their mean")
    parser.add_argument("--dtype", choices=("fp32", "fp16"), default="fp32", help="of what is written (default: fp32)")
    parser.add_argument("--format", choices=FORMATS, default="npy", help="of the files (default: npy)")
    parser.add_argument("--split", help="of a dataset: one, several as val,test (default: all)")
    parser.add_argument("--batch", type=int, metavar="N", help="windows at once (default: 2 on a CPU, 32 on CUDA)")
    parser.add_argument("--workers", type=int, metavar="N", help="threads of a rank that decode, a video each")
    options = parser.parse_args(arguments)
    refuse_dataset("--out", options.out)
    for name, value in {**DEFAULTS, **PRESETS.get(options.preset, {})}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("window", "step", "stride", "batch", "workers"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")
    if options.fps is not None and not 0 < options.fps <= MOST_FPS:
        raise ValueError(f"--fps {options.fps:g} must be more than 0 and at most {MOST_FPS}")
    with started(options.device, flag="--device") as ranks:
        lost = extract_all(options, ranks)
    check_printed()
    return 1 if lost else 0


def extract_all(options: argparse.Namespace, ranks: Ranks) -> int:
    """All ranks call it -> how many videos have no features. Raises ValueError for what does not fit together."""
    weights = for_encoder(released.read(options))  # on rank 0; the others know what it is
    config = weights.config
    window = options.window or config.num_frames
    if window % config.tubelet_size:
        raise ValueError(f"--window {window} must be a multiple of {config.tubelet_size}, the frames of a token")
    windows = Windows(window, options.step, options.stride or window * options.step, options.fps, options.short == "repeat")
    view = FrameView(config.input_size, options.resize, options.normalise)
    precision = options.precision or ("bf16" if ranks.device.type == "cuda" else "fp32")
    asked = {
        "weights": ranks.first(lambda: fingerprint(weights.tensors)),
        "model": encoder_sizes(weights),
        "window": windows.num_frames,
        "step": windows.step,
        "stride": windows.stride,
        "fps": windows.fps,
        **asdict(view),
        "level": "tokens" if options.tokens else "pooled",
        "dtype": options.dtype,
        "precision": precision,
    }
    made_with = {"device": ranks.device.type, "tubecell": version(), "torch": torch.__version__, "av": av.__version__}
    folder = FeatureFolder(options.out, options.format, windows, asked, ranks.rank)
    videos: list[ListedVideo] = ranks.first(lambda: find_videos(options.videos, options.split))
    done = ranks.first(lambda: folder.begin(made_with, videos))
    left = [video for video in videos if video.name not in done]
    if ranks.rank == 0:
        print(weights)
        there = f", of which {len(videos) - len(left)} were there" if len(left) < len(videos) else ""
        print(f"{count(len(videos), 'video')}{there}", flush=True)
    lost: list[dict[str, Any]] = []
    if left:
        device = ranks.device.type
        encoder, batch = released.encoder_on(weights, precision, ranks), options.batch or BATCH[device]
        extraction = Extraction(encoder, view, folder, batch=batch, tokens=options.tokens, dtype=options.dtype)
        stream = WindowStream(
            shares(left, ranks.world_size)[ranks.rank],
            opener(options.videos),
            windows,
            view,
            threads=options.workers or min(THREADS[device], usable_cores()),
            ahead=batch,
        )
        with stream, Progress(total=0, unit="window", quiet=ranks.rank != 0) as bar:
            lost = extraction.run(stream, bar)
    lost = sorted(chain(*ranks.gather(lost)), key=lambda line: line["video"])  # and every file is written
    lines = ranks.first(folder.finish)
    if ranks.rank == 0:
        report(options, [line for line in lines if "windows" in line], lost, len(videos))
    return len(lost)


def report(options: argparse.Namespace, lines: list[dict[str, Any]], lost: list[dict[str, Any]], of: int) -> None:
    """`lines` are of all videos in the folder, `lost` those of this command's that have no features."""
    for line in lost[:SHOWN]:
        complain(released.printable(f"extract-features: {line['source']}: {line['detail']}"))
    if len(lost) > SHOWN:
        complain(f"extract-features: and {len(lost) - SHOWN} others, see {VIDEOS}")
    windows = count(sum(line["windows"] for line in lines), "window")
    print(released.printable(f"of {of - len(lost)} of {count(of, 'video')}; {windows} in {options.out}"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
