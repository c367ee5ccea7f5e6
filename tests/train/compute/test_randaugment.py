"""Each operation on the device against PIL's, in grey levels; whole plans, and views of 16 bits."""

import numpy as np
import pytest
import timm.data.auto_augment as peer
import torch
from PIL import Image
from torch.nn.functional import interpolate

from pipeline import keyed
from pipeline.sampling.randaugment import OPERATIONS, RandAugment, arguments, plans
from train.compute.randaugment import operated, randaugmented

WHOLE = ("Posterize", "Solarize")  # whose arguments are whole numbers


def pictures() -> np.ndarray:
    """Five frames of 60 x 80, whose details are two pixels wide: three of different brightness and contrast, one that is all
    white but for a corner, one of a single level."""
    rough = torch.rand(3, 3, 30, 40, generator=torch.Generator().manual_seed(0))
    smooth = interpolate(rough, (60, 80), mode="bilinear").permute(0, 2, 3, 1).numpy()
    frames = np.array([90, 200, 255])[:, None, None, None] * smooth + np.array([0, 40, 0])[:, None, None, None]
    corner = np.full((1, 60, 80, 3), 255.0)
    corner[:, :4, :4] = 17
    return np.concatenate([frames, corner, np.full((1, 60, 80, 3), 77)]).astype(np.uint8)


def by_pil(frames: np.ndarray, operations: list[tuple[str, float]]) -> np.ndarray:
    for name, argument in operations:
        how = (int(argument) if name.startswith(WHOLE) else argument,) if arguments(name, 0) else ()
        changed = [peer.NAME_TO_OP[name](Image.fromarray(frame), *how, fillcolor=(128,) * 3, resample=3) for frame in frames]
        frames = np.stack([np.asarray(frame) for frame in changed])
    return frames


@pytest.mark.parametrize(
    ("names", "most", "high", "mean"),  # at most, 99 % of the pixels, in the mean
    [
        (("AutoContrast", "Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"), 0, 0, 0.0),
        (("BrightnessIncreasing", "ColorIncreasing", "ContrastIncreasing", "SharpnessIncreasing"), 0, 0, 0.0),
        (("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"), 8, 3, 0.5),
        (("Rotate",), 12, 5, 0.75),
    ],
)
def test_how_far_operations_are_from_pils(names: tuple[str, ...], most: int, high: int, mean: float) -> None:
    frames = pictures()
    for name in names:
        for magnitude in (0.0, 3.3, 7.0, 9.9):
            for argument in arguments(name, magnitude) or (np.zeros(()),):
                operations = [(name, argument.item())]
                found = operated(torch.from_numpy(frames), operations).numpy()
                off = np.abs(found.astype(int) - by_pil(frames, operations))
                found_to_be = off.max(), np.percentile(off, 99), off.mean()
                assert all(np.array(found_to_be) <= (most, high, mean)), (operations, found_to_be)
    assert not operated(torch.from_numpy(frames), [("PosterizeIncreasing", 0.0)]).any()  # which PIL refuses


def test_views_have_their_plans() -> None:
    """Of operations in their order, some of them one table; of 16 bits what has operations is of whole levels then."""
    drawn = plans(keyed.mix(5, np.arange(40)), RandAugment.parse("rand-m5-n4-mstd0.5-inc1"))
    exact = np.isin(drawn[..., 0], [*range(OPERATIONS.index("ShearX")), -1]) & (drawn[..., 0] != OPERATIONS.index("Rotate"))
    drawn = drawn[exact.all(1)]
    views = torch.from_numpy(np.stack([np.roll(pictures(), shift, 2) for shift in range(len(drawn))]))
    before, found = views.clone(), randaugmented(views, drawn)
    assert len(drawn) > 10 and torch.equal(views, before) and found.dtype == torch.uint8
    for view, plan, seen in zip(views.numpy(), drawn.tolist(), found.numpy(), strict=True):
        assert np.array_equal(by_pil(view, [(OPERATIONS[int(index)], a) for index, a in plan if index >= 0]), seen)

    untouched = torch.from_numpy((drawn[..., 0] < 0).all(1))
    finer = views.short() * 128 + torch.arange(80)[:, None] % 128 - 64
    seen, whole = randaugmented(finer.clamp(0, 255 * 128), drawn), finer.clamp(0, 255 * 128)
    assert untouched.any() and torch.equal(seen[untouched], whole[untouched])
    assert torch.equal(seen[~untouched], found[~untouched].short() * 128)
