"""Views for fine-tuning, up to the normalised floats that the model takes: the loader with what the trainer does to its
batches, and the DataLoader that a user writes with decord2, PIL and timm.

Both decode a clip once and make R views of it. *plain* is a random resized crop and a flip; otherwise RandAugment comes before
the crop, one draw for all frames of a view, and a box of some views is erased, as in official fine-tuning.
"""

import random
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from benchmarks.parts.path_parts import LoaderWork
from benchmarks.parts.peers import MEAN, STD, PeerWork, VideoFiles
from benchmarks.parts.stopwatch import Part, Stopwatch
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.draws import Draws
from train.augmentation import AugmentConfig, augmented, may_flip
from train.compute.on_cpu import keep_memory
from train.config import RunConfig

VIEWS = 2  # of a clip, the official number
PLAIN = AugmentConfig(randaugment="", erasing=0.0, mixup=0.0, cutmix=0.0)
HOW = {
    "plain": PLAIN,
    "official": replace(PLAIN, randaugment=AugmentConfig().randaugment, erasing=AugmentConfig().erasing),
}
HOW["device"] = replace(HOW["official"], randaugment_by="device")


class FinetuneWork(LoaderWork):
    """Batches as `finetune` makes them on its device, without mixing."""

    def __init__(
        self, dataset: Path, recipe: SamplingRecipe, config: RunConfig, stopwatch: Stopwatch, augment: AugmentConfig
    ) -> None:
        more: dict[str, Any] = {"crop_resize": "official", "randaugment": augment.operations_of_frames}
        recipe = replace(recipe, masks=None, crop="random_resized", **more)
        self.augment = augment
        if stopwatch.device.type == "cpu":
            keep_memory()  # as the trainer does
        super().__init__(dataset, recipe, config, stopwatch)

    def work(self) -> int:
        batch, recipe = next(self.loader), self.loader.recipe
        draws = Draws(recipe, batch.epoch, batch.positions.numpy())
        augmented(batch.views, draws, self.augment, np.repeat(may_flip(batch), recipe.views_per_clip))
        return len(batch.positions)


class FinetuneFiles(VideoFiles):
    """File -> (R views, float32 (3, T, size, size), no masks)."""

    def __init__(self, files: Sequence[Path], reader: str, recipe: SamplingRecipe, plain: bool) -> None:
        super().__init__(files, reader, recipe)
        self.plain = plain

    def __getitem__(self, index: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        frames = self.read(self.files[index], self.choose_frames)
        images = [] if self.plain else [Image.fromarray(frame) for frame in frames]
        return [self.augmented_view(frames, images) for _ in range(self.recipe.views_per_clip)], []

    def augmented_view(self, frames: np.ndarray, images: list[Image.Image]) -> torch.Tensor:
        """Whole frames become floats, then are cropped, as in the official code; the other order takes 35 ms for two views
        instead of 88, beside 44 of decoding (24 files of 200 to 640 px)."""
        from torchvision.transforms import RandomResizedCrop  # a second

        if images:
            frames = np.stack([np.asarray(image) for image in randaugment(images)])
        pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).float().div_(255).sub_(MEAN).div_(STD)
        top, left, height, width = RandomResizedCrop.get_params(pixels[:, 0], [0.08, 1.0], [3 / 4, 4 / 3])
        crop = pixels[:, :, top : top + height, left : left + width]
        view = interpolate(crop, self.recipe.view_size, mode="bilinear", align_corners=False)
        if random.random() < 0.5:
            view = view.flip(3)
        return view if self.plain else erased(view)


def randaugment(images: list[Image.Image]) -> list[Image.Image]:
    """timm's rand-m7-n4-mstd0.5-inc1, with one draw for all images."""
    from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, rand_augment_ops

    how = {"img_mean": (128, 128, 128), "interpolation": Image.Resampling.BICUBIC}
    for operation in random.choices(rand_augment_ops(7, hparams=how, transforms=_RAND_INCREASING_TRANSFORMS), k=4):
        if random.random() < 0.5:
            continue
        magnitude = min(max(random.gauss(7, 0.5), 0), 10)
        arguments = operation.level_fn(magnitude, how) if operation.level_fn else ()
        images = [operation.aug_fn(image, *arguments, **operation.kwargs) for image in images]
    return images


def erased(view: torch.Tensor) -> torch.Tensor:
    """A box of a quarter of the views is noise, in place."""
    from timm.data.random_erasing import RandomErasing

    _, T, height, width = view.shape
    once = RandomErasing(probability=0.25, mode="pixel", max_count=1, device="cpu")
    return once(view.view(-1, height, width)).view(-1, T, height, width)


def add_finetuning(
    files: Sequence[Path], dataset: Path, recipe: SamplingRecipe, config: RunConfig, stopwatch: Stopwatch, stack: ExitStack
) -> dict[str, Part]:
    """DataLoaders over files, and the loader over the dataset that was built of them, by "plain", "official" and "device", and
    "dataloader/plain" and "dataloader". The recipe has `VIEWS` of a clip."""
    parts: dict[str, Part] = {}
    for name, plain in (("dataloader/plain", True), ("dataloader", False)):
        videos = FinetuneFiles(files, "decord2", recipe, plain)
        work = stack.enter_context(closing(PeerWork(videos, stopwatch.device)))
        title = f"DataLoader, decord2, R = {VIEWS}, fine-tuning{', plain' if plain else ''}"
        parts[name] = Part(name.replace("dataloader", "dataloader/finetune"), title, VIEWS, work)
    for how, augment in HOW.items():
        mine = stack.enter_context(closing(FinetuneWork(dataset, recipe, config, stopwatch, augment)))
        name = "loader/finetune" if how == "official" else f"loader/finetune/{how}"
        parts[how] = Part(name, f"loader, libav, R = {VIEWS}, fine-tuning, {how}", VIEWS, mine)
    return parts
