"""What a user writes without tubecell: a PyTorch `DataLoader` over video files. The peers that the loader is measured against.

`__getitem__` opens a file, decodes 16 frames at stride 4 from a random start with decord2 or with PyAV, and makes R float
views of them with PIL, each with its own MultiScaleCrop and tube mask; `num_workers` is the number of cores. This is what
the official loader of VideoMAE V2 does (spec/videomae.md, "Data"), written afresh, plainly and without anything that slows
it down on purpose: libav is asked to seek, pixels become floats in place, views are stacked once, on the way to the trainer.
"""

import importlib.util
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset

from pipeline.decoding.decode import find_video
from pipeline.machine import usable_cores
from pipeline.sampling import SamplingRecipe

STRIDE = 4
CLIPS_PER_BATCH = 2  # four views of 9.6 MB each: with more, the workers of 64 cores would hold tens of gigabytes ready
SCALES = (1.0, 0.875, 0.75, 0.66)
# of the crop's corner, in quarters of the room there is: corners, middle, middles of the edges, quarter points
POSITIONS = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3))
MEAN, STD = (torch.tensor(values).view(3, 1, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

FrameChoice = Callable[[int], list[int]]


def read_with_decord(path: str, choose: FrameChoice) -> np.ndarray:
    """The chosen frames of a video, uint8 (T, height, width, 3)."""
    import decord  # the package decord2; imported in the workers only

    video = decord.VideoReader(path, num_threads=1)
    return video.get_batch(choose(len(video))).asnumpy()


def read_with_pyav(path: str, choose: FrameChoice) -> np.ndarray:
    """The same, from the key frame before the first one on. A frame that does not come out is the one before it."""
    with av.open(path, metadata_errors="replace") as container:
        stream = find_video(container)
        assert stream and stream.average_rate and stream.time_base
        step = float(1 / stream.average_rate / stream.time_base)  # a frame's duration in time stamps
        first = stream.start_time or 0
        length = stream.frames or int((container.duration or 0) / 1e6 * float(stream.average_rate))
        numbers = choose(length)
        container.seek(int(first + numbers[0] * step), stream=stream)
        frames: dict[int, np.ndarray] = {}
        for frame in container.decode(stream):
            number = round(((frame.pts or 0) - first) / step)
            if number in numbers:
                frames[number] = frame.to_ndarray(format="rgb24")
            if number >= numbers[-1]:
                break
    return np.stack([frames[max((found for found in frames if found <= number), default=min(frames))] for number in numbers])


READERS = {"decord2": read_with_decord, "PyAV": read_with_pyav}


def missing_reader(name: str) -> str | None:
    """Why there is no such peer here; None if there is one."""
    if name == "decord2" and importlib.util.find_spec("decord") is None:
        return "decord2 is not installed (pip install decord2)"
    return None


class VideoFiles(Dataset):
    """File -> (R views, float32 (3, T, size, size), R masks, bool (N,), True where a token is hidden from the encoder)."""

    def __init__(self, files: Sequence[Path], reader: str, recipe: SamplingRecipe) -> None:
        self.files, self.read, self.recipe = [str(file) for file in files], READERS[reader], recipe

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        for _ in range(10):
            try:
                frames = self.read(self.files[index], self.choose_frames)
                break
            except Exception as error:  # as the official loader: another video instead
                index, failed = random.randrange(len(self.files)), error
        else:
            raise RuntimeError(f"ten videos in a row could not be read, the last: {failed}") from failed
        images = [Image.fromarray(frame) for frame in frames]
        views = range(self.recipe.views_per_clip)
        return [self.view(images) for _ in views], [self.mask() for _ in views]

    def choose_frames(self, length: int) -> list[int]:
        """A random window; the last frame stands for those that a short video lacks."""
        span = (self.recipe.num_frames - 1) * STRIDE + 1
        start = random.randint(0, max(0, length - span))
        return [min(start + i * STRIDE, length - 1) for i in range(self.recipe.num_frames)]

    def view(self, images: list[Image.Image]) -> torch.Tensor:
        """One crop for all frames, resized with PIL's bilinear filter, normalised."""
        size, _ = self.recipe.view_size
        left, top, width, height = multi_scale_crop(*images[0].size, size)
        box = (left, top, left + width, top + height)
        crops = [image.crop(box).resize((size, size), Image.Resampling.BILINEAR) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(crop) for crop in crops]))
        return pixels.permute(3, 0, 1, 2).float().div_(255).sub_(MEAN).div_(STD)

    def mask(self) -> torch.Tensor:
        """The same tubes through all frames."""
        depth, height, width = self.recipe.grid
        hidden = torch.zeros(height * width, dtype=torch.bool)
        hidden[torch.randperm(height * width)[: int(self.recipe.mask_ratio * height * width)]] = True
        return hidden.repeat(depth)


class ViewItems(VideoFiles):
    """View of a file -> (itself, float32 (3, T, size, size), no mask). Every 4th frame is decoded and resized, then T of them
    and one of C squares along the long side are kept. Torch resizes 75 frames of 340 x 256, uint8, in 19 ms, PIL in 72."""

    def __init__(self, files: Sequence[Path], reader: str, recipe: SamplingRecipe, segments: int, crops: int) -> None:
        super().__init__(files, reader, recipe)
        self.segments, self.crops = segments, crops

    def __len__(self) -> int:
        return len(self.files) * self.segments * self.crops

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        file, view = divmod(index, self.segments * self.crops)
        segment, crop = divmod(view, self.crops)
        frames = torch.from_numpy(self.read(self.files[file], lambda length: list(range(0, length, STRIDE))))
        (size, _), T = self.recipe.view_size, self.recipe.num_frames
        height, width = frames.shape[1:3]
        short = min(height, width)
        resized = (size * height // short, size * width // short)
        frames = interpolate(frames.permute(0, 3, 1, 2), resized, mode="bilinear", align_corners=False)
        frames = torch.cat([frames, frames[-1:].expand(max(0, T - len(frames)), -1, -1, -1)])
        start = segment * (len(frames) - T) // max(1, self.segments - 1)
        top, left = (crop * (side - size) // max(1, self.crops - 1) for side in resized)
        pixels = frames[start : start + T, :, top : top + size, left : left + size]
        return [pixels.transpose(0, 1).float().div_(255).sub_(MEAN).div_(STD)], []


def multi_scale_crop(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """MultiScaleCrop at 13 positions -> (left, top, width, height)."""
    sides = [int(min(width, height) * scale) for scale in SCALES]
    sides = [size if abs(side - size) < 3 else side for side in sides]
    w, h = random.choice([(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1])
    column, row = random.choice(POSITIONS)
    return column * ((width - w) // 4), row * ((height - h) // 4), w, h


def endless(length: int) -> Iterator[int]:
    """One shuffled epoch after the other, so that workers never wait at an epoch's end: real ones last hours."""
    while True:
        yield from torch.randperm(length).tolist()


class PeerWork:
    """Batches of a peer in the trainer's process, on its device."""

    def __init__(self, dataset: VideoFiles, device: torch.device) -> None:
        self.device, self.workers = device, usable_cores()
        self.loader = DataLoader(
            dataset,
            batch_size=CLIPS_PER_BATCH,
            sampler=endless(len(dataset)),
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            persistent_workers=True,
        )
        self.batches = iter(self.loader)

    def prepare(self) -> None:
        """Take what the workers have ready, two batches each, and one more of each."""
        for _ in range(3):
            self.work()

    def work(self) -> int:
        """A batch of every worker."""
        clips = 0
        for _ in range(self.workers):
            views, masks = next(self.batches)
            for tensor in (*views, *masks):
                tensor.to(self.device, non_blocking=True)
            clips += len(views[0])
        return clips

    def close(self) -> None:
        """End the workers."""
        del self.batches, self.loader
