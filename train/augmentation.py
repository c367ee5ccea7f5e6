"""What fine-tuning does to views on the training device: mirror them, erase a box of each, mix them with their partners; and
RandAugment, if it is wanted there.

All of it is drawn on the host, by view (`sampling/draws.py`), so a step has the same on any number of ranks; the host does not
wait. n views of T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from model.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise, per_channel
from pipeline import keyed
from pipeline.floats import mirrored_floats
from pipeline.loader import Batch
from pipeline.sampling.draws import Draws
from pipeline.sampling.mixing import Mixing
from pipeline.sampling.randaugment import RandAugment
from pipeline.settings import flag, setting
from train.compute.randaugment import PARTS, randaugmented

NEVER_FLIPPED = "ssv1", "ssv2", "something"  # sources


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """Noise in the views and labels of training; defaults are those of the official scripts."""

    randaugment: str = setting("rand-m7-n4-mstd0.5-inc1", was="")
    """RandAugment in timm's notation: of a view, for all of its frames, four of 15 operations are drawn, each applied with a
    probability of 0.5 and a magnitude of about 7; "": none."""
    randaugment_by: Literal["official", "device"] = "official"
    """"official": of whole frames, before the crop, by the processes that decode, with libav. "device": after the crop, on the
    training device, whatever decodes: the same draws, but contrast and histograms are the crop's, and grey edges lie in it."""
    flip: float = 0.5
    """Probability that a view is mirrored."""
    never_flipped: tuple[str, ...] = NEVER_FLIPPED
    """Sources of the dataset whose views never are: the classes of Something-Something tell left from right."""
    erasing: float = 0.25
    """Probability that a box of a view, the same in all its frames, is noise."""
    mixup: float = 0.8
    """Parameter of the Beta distribution of a view's share in mixup with the clip half a step away; 0: no mixup."""
    cutmix: float = 1.0
    """The same of CutMix, in which a box is the partner's; 0: no CutMix."""
    switch: float = 0.5
    """Probability of CutMix where mixup is on, too."""
    smoothing: float = 0.1
    """Share of a label that goes to all classes alike."""

    def __post_init__(self) -> None:
        if self.randaugment:
            try:
                RandAugment.parse(self.randaugment)
            except ValueError as error:
                raise ValueError(f'--augment.randaugment: {error}; or "", none') from None
        for name in ("flip", "erasing", "switch"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{flag(f'augment.{name}')} {value} must be 0 to 1")
        for name in ("mixup", "cutmix"):
            if not 0 <= (value := getattr(self, name)) <= 100:
                raise ValueError(f"{flag(f'augment.{name}')} {value} must be 0 (without it) to 100")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"--augment.smoothing {self.smoothing} must be at least 0 and less than 1")

    @property
    def operations_of_frames(self) -> str:
        """What the sampling recipe has of RandAugment."""
        return self.randaugment if self.randaugment_by == "official" else ""

    @property
    def operations_of_views(self) -> RandAugment | None:
        """Those on the training device."""
        return RandAugment.parse(self.randaugment) if self.randaugment and self.randaugment_by == "device" else None

    @property
    def mixes(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0


@torch.no_grad()
def augmented(views_nTHWC: Tensor, draws: Draws, config: AugmentConfig, may_flip: np.ndarray) -> tuple[Tensor, Mixing | None]:
    """Views, uint8 or int16 in 128ths of a level -> normalised float32, but uint8 without noise in pixels uint8; and how they
    were mixed. `may_flip` (n,) says which views may be mirrored at all. The views given stay as they are."""
    if how := config.operations_of_views:
        views_nTHWC = randaugmented(views_nTHWC, draws.randaugment(how))
    flips = draws.flips(config.flip) & may_flip
    mixing = draws.mixing(config.mixup, config.cutmix, config.switch) if config.mixes else None
    if views_nTHWC.dtype == torch.uint8 and not config.erasing and not mixing:
        return flipped(views_nTHWC, flips), None
    views_nTHWC = normalised(views_nTHWC, flips)
    boxes = draws.erasing(config.erasing)
    generators = draws.generators(keyed.ERASING, views_nTHWC.device)
    for view_THWC, box, generator in zip(views_nTHWC, boxes.tolist(), generators, strict=True):
        erase(view_THWC, box, generator)
    return (mixed(views_nTHWC, mixing) if mixing else views_nTHWC), mixing


def normalised(views_nTHWC: Tensor, flips: np.ndarray) -> Tensor:
    """uint8 or int16 in 128ths of a level -> float32, the same of both for whole levels; some of the views, bool (n,), are
    mirrored."""
    if views_nTHWC.device.type == "cpu":
        row = torch.empty(3 * views_nTHWC.shape[3])
        made = mirrored_floats(views_nTHWC, flips, per_channel(IMAGENET_MEAN, row), per_channel(IMAGENET_STD, row))
        if made is not None:
            return made
    levels = flipped(views_nTHWC, flips).flatten(3)
    return normalise(levels if levels.dtype == torch.uint8 else levels.float().div_(PARTS)).view(views_nTHWC.shape)


def may_flip(batch: Batch, never: Sequence[str] = NEVER_FLIPPED) -> np.ndarray:
    """Of each clip, by its source -> bool (B,)."""
    assert batch.loader is not None
    manifest = batch.loader.manifest
    return ~np.isin(manifest.source[batch.rows.numpy()], [n for n, name in enumerate(manifest.sources) if name in never])


def flipped(views_nTHWC: Tensor, which: np.ndarray) -> Tensor:
    """Some of the views, bool (n,), mirrored; a copy."""
    at = on_device(np.flatnonzero(which), views_nTHWC.device)
    return views_nTHWC.index_copy(0, at, views_nTHWC.index_select(0, at).flip(3))


def erase(view_THWC: Tensor, box: Sequence[int], generator: torch.Generator) -> None:
    """Normal noise in a box (x, y, width, height), anew for each frame and channel, in place."""
    x, y, width, height = box
    if width:
        within = view_THWC[:, y : y + height, x : x + width]
        within.copy_(torch.randn(within.shape, generator=generator, dtype=view_THWC.dtype, device=view_THWC.device))


def mixed(views_nTHWC: Tensor, mixing: Mixing) -> Tensor:
    """Each view, of floats, mixed with its partner; a copy."""
    device, (height, width) = views_nTHWC.device, views_nTHWC.shape[2:4]
    x, y, wide, high = on_device(mixing.boxes, device)[:, :, None].unbind(1)  # (n, 1) each
    columns, rows = torch.arange(width, device=device), torch.arange(height, device=device)
    within_nHW = ((rows >= y) & (rows < y + high))[:, :, None] & ((columns >= x) & (columns < x + wide))[:, None]
    own = torch.where(within_nHW, on_device(mixing.inside, device)[:, None, None], 1.0).to(views_nTHWC.dtype)
    partners_nTHWC = views_nTHWC.index_select(0, on_device(mixing.partners, device))
    return torch.lerp(partners_nTHWC, views_nTHWC, own[:, None, :, :, None])


def mixed_labels(soft_nC: Tensor, mixing: Mixing) -> Tensor:
    """The labels of the same views, as `soft_labels` gives them."""
    share = on_device(mixing.share, soft_nC.device).to(soft_nC.dtype)[:, None]
    return torch.lerp(soft_nC.index_select(0, on_device(mixing.partners, soft_nC.device)), soft_nC, share)


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy there, for which the host does not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
