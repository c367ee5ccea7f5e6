#!/usr/bin/env python3
"""How fast features are extracted, beside the official way: one window at a time, decoded alone.

    tubecell features                                        ViT-S, windows of 16 frames, every 4th of a generated video
    tubecell features --model vit-b --video long.mp4 --json features.json

The official way is VideoMAE V2's script for THUMOS14, written afresh: decord2 is asked for a window's frames, which are resized
and go through the model alone, in fp32; attention is three operations, as in its code. Ours is all that `tubecell
extract-features --preset thumos14` does with a video, in fp32 as well, and with --precision bf16. They take turns, round after
round; figures are the rounds' medians, and ratios the medians of the rounds' ratios.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import itertools
import tempfile
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from benchmarks.parts.generated_dataset import draw_video
from benchmarks.parts.peers import missing_reader
from benchmarks.parts.program import WithTurns, program
from benchmarks.parts.results import Result, check_numbers, describe_machine, disturbance
from benchmarks.parts.stopwatch import Part, Stopwatch, Work, ratios
from model.classifier import VideoClassifier
from model.config import MODELS
from model.initialization import initialise
from model.layers import Attention
from model.video_encoder import VideoEncoder
from train.compute.parallel import started
from train.compute.precision import PRECISIONS
from train.extract_features import BATCH
from train.features.extraction import Extraction
from train.features.folder import FeatureFolder
from train.features.stream import WindowStream
from train.features.videos import ListedVideo, opener
from train.features.windows import PRESETS, FrameView, Windows

PRESET = PRESETS["thumos14"]
WINDOWS = Windows(PRESET["window"], PRESET["step"], PRESET["stride"])
PICTURE = "testsrc2=size=320x180:rate=30,noise=alls=6:allf=t"  # the size and rate of THUMOS14


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(WithTurns):
    """What is measured, and for how long."""

    video: Path | None = None
    """The video to measure on; by default a generated one of 320 x 180 at 30 frames/s, with x264's own settings."""
    frames: int = 156
    """Of the generated video. A turn of ours is a whole video: ViT-S takes half a minute for these in fp32 on two cores."""
    model: str = "vit-s"
    """One of the named models."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes a GPU if there is one."""


class OneWindow(Work):
    """The official way. A clip is a window."""

    def __init__(self, encoder: VideoEncoder, video: Path, device: torch.device) -> None:
        import decord  # the package decord2

        self._encoder, self._device = encoder.to(device), device
        for module in encoder.modules():
            if isinstance(module, Attention):
                module.product = as_written
        self._video = decord.VideoReader(str(video))
        starts = WINDOWS.starts(len(self._video))
        self._starts = itertools.cycle(np.random.default_rng(0).permutation(starts).tolist())  # of every part of the video

    @torch.inference_mode()
    def features(self, start: int) -> np.ndarray:
        """Of the window that begins there, (D,)."""
        frames_THWC = torch.from_numpy(self._video.get_batch(range(start, start + WINDOWS.num_frames)).asnumpy())
        clip_CTHW, size = frames_THWC.permute(3, 0, 1, 2).to(self._device) / 255, self._encoder.config.input_size
        clip_CTHW = interpolate(clip_CTHW, (size, size), mode="bilinear", align_corners=False)
        return self._encoder.forward_head(self._encoder.forward_features(clip_CTHW[None]), True)[0].cpu().numpy()

    def work(self) -> int:
        """A window."""
        self.features(next(self._starts))
        return 1


def as_written(q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:
    """Attention in the official code."""
    return ((q_BHNd * q_BHNd.shape[-1] ** -0.5) @ k_BHNd.transpose(-2, -1)).softmax(-1) @ v_BHNd


class WholeVideo(Work):
    """What `extract-features` does with a video, from opening it to the file of its features. A clip is a window."""

    def __init__(self, encoder: VideoEncoder, video: Path, device: torch.device, precision: str) -> None:
        self._encoder, self._batch = encoder.to(device, PRECISIONS[precision].encoder), BATCH[device.type]
        self._videos = [ListedVideo("video", str(video), video.stat().st_size)]
        self._view = FrameView(encoder.config.input_size, PRESET["resize"], PRESET["normalise"])

    def features(self) -> np.ndarray:
        """Of all its windows, (W, D). Raises RuntimeError if it cannot be decoded."""
        with tempfile.TemporaryDirectory(prefix="tubecell-features-") as place:
            folder = FeatureFolder(Path(place), "npy", WINDOWS, {}, 0)
            extraction = Extraction(self._encoder, self._view, folder, batch=self._batch)
            stream = WindowStream(self._videos, opener([]), WINDOWS, self._view, threads=1, ahead=self._batch)
            with stream, tqdm(total=0, disable=True) as bar:
                if lost := extraction.run(stream, bar):
                    raise RuntimeError(f"{lost[0]['source']}: {lost[0]['detail']}")
            return np.load(folder.folder / "video.npy")

    def work(self) -> int:
        """The windows of the video."""
        return len(self.features())


@program(Options)
def main(options: Options) -> list[Result]:
    if options.model not in MODELS:
        raise ValueError(f"there is no model {options.model!r}; the models are {', '.join(MODELS)}")
    check_numbers(options, "frames", "rounds")
    if missing := missing_reader("decord2"):
        raise ValueError(f"the official way cannot be measured: {missing}")
    with started(options.device) as ranks, tempfile.TemporaryDirectory(prefix="tubecell-features-") as folder:
        video = options.video or draw_video(PICTURE, f"-c:v libx264 -frames:v {options.frames}", Path(folder, "video.mp4"))
        print(f"{describe_machine()}\n{options.model}, {options.video or f'{options.frames} frames of 320 x 180'}", flush=True)
        model = VideoClassifier(MODELS[options.model], 1)
        initialise(model, seed=0)
        first, second, third = (VideoEncoder.from_tensors(model.config, dict(model.named_parameters())) for _ in range(3))
        one = OneWindow(first, video, ranks.device)
        fp32, bf16 = WholeVideo(second, video, ranks.device, "fp32"), WholeVideo(third, video, ranks.device, "bf16")
        whole, rounded = fp32.features(), bf16.features()
        alone = np.stack([one.features(start) for start in (0, WINDOWS.stride)])
        parts = [
            Part("one_clip", "one window at a time, fp32", 1, one),
            Part("fp32", "extract-features, fp32", 1, fp32),
            Part("bf16", "extract-features, bf16", 1, bf16),
        ]
        Stopwatch(options.seconds, ranks.device).rounds(parts, options.rounds)
    print(f"\n{'part':<28}  {'windows/s':>9}  {'spread':>6}  {'cores':>5}  {'CPU ms/window':>13}  {'by the official way':>19}")
    for part in parts:
        used = 1000 * median(cores / rate for cores, rate in zip(part.cores, part.rates, strict=True))
        by = median(ratios(part, parts[0], in_views=False))
        row = f"{part.clips:>9.3g}  {part.spread:>6.0%}  {median(part.cores):>5.1f}  {used:>13.4g}  {by:>17.2f} x"
        print(f"{part.title:<28}  {row}")
    print(
        f"distances: fp32 {distance(whole[:2], alone):.1e} from the official way, bf16 {distance(rounded, whole):.1e} from fp32"
    )
    print("\n".join(disturbance(max(median(part.neighbours) for part in parts))))
    found = [part.result("windows/s", f"features/{part.name}") for part in parts]
    found.append(parts[2].result("windows/s", "features/vs_one_clip", parts[0]))
    return [*found, parts[1].result("windows/s", "features/vs_one_clip/fp32", parts[0])]


def distance(features: np.ndarray, wanted: np.ndarray) -> float:
    """Relative, L2."""
    return float(np.linalg.norm(features - wanted) / np.linalg.norm(wanted))


if __name__ == "__main__":
    sys.exit(main())
