"""RandAugment on whole frames: PIL's operations, the same bytes with and without the compiled kernel."""

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import NAME_TO_OP

from pipeline import keyed
from pipeline.decoding import augment, resize
from pipeline.decoding.augment import Augmentation
from pipeline.decoding.decode import ClipRequest, decode_frames, decode_libav
from pipeline.sampling.randaugment import OPERATIONS, RandAugment, plans
from tests.pipeline.encoding import describe, encode, numbered_frame

PLAIN = {"AutoContrast", "Equalize", "Invert"}
GEOMETRY = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
HOW = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Waves of another frequency in each channel, an edge, noise and a flat corner."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [100 + 70 * np.sin(x / (5 + 3 * c) + y / (9 - c)) + 40 * (x > width // 2) for c in range(3)]
    noisy = np.stack(waves, axis=2) + rng.normal(0, 9, (height, width, 3))
    noisy[: height // 4, : width // 4] = 77
    return np.clip(noisy, 3, 250).astype(np.uint8)


def rows_of(frame: np.ndarray) -> np.ndarray:
    """With bytes after each row, as a decoder has them."""
    return np.ascontiguousarray(np.pad(frame.reshape(len(frame), -1), ((0, 0), (0, 40)), constant_values=199))


def by_pil(frame: np.ndarray, operation: str, argument: float) -> np.ndarray:
    arguments = [] if operation in PLAIN else [int(argument)] if "Poster" in operation else [argument]
    made = NAME_TO_OP[operation](
        Image.fromarray(frame), *arguments, fillcolor=(128, 128, 128), resample=Image.Resampling.BICUBIC
    )
    return np.asarray(made)


@pytest.fixture(params=["compiled", "NumPy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "NumPy":
        monkeypatch.setattr(augment, "kernel", lambda: None)
        monkeypatch.setattr(resize, "kernel", lambda: None)
    elif augment.kernel() is None:
        pytest.skip("no AVX2, or no C compiler")
    return request.param


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_pils(way: str, operation: str) -> None:
    """To the bit; of geometry one pixel in 200 may be a level off."""
    weak, strong = {
        "Rotate": (7.5, -21.0),
        "PosterizeIncreasing": (4, 1),
        "SolarizeIncreasing": (256, 77),
        "SolarizeAdd": (0, 77),
    }.get(operation, (0.315, -0.2) if operation in GEOMETRY else (0.37, 1.63))
    frames = [picture(85, 64), np.full((40, 48, 3), 90, np.uint8), picture(33, 90, 1) // 2]
    for frame, argument in [(frame, argument) for frame in frames for argument in (weak, strong, 1, 0)]:
        height, width, _ = frame.shape
        if operation == "PosterizeIncreasing" and argument == 0:
            continue  # Pillow 13 refuses it
        view = Augmentation(np.array([[OPERATIONS.index(operation), argument]]), (0, 0, width, height), width, height)
        made = view.frame(rows_of(frame))[:, : 3 * width].reshape(frame.shape) if view else frame
        wanted = by_pil(frame, operation, argument)
        if operation in GEOMETRY:
            difference = np.abs(made.astype(int) - wanted)
            assert difference.max() <= 1 and (difference > 0).mean() < 0.005
        else:
            assert np.array_equal(made, wanted), argument


def test_what_a_crop_shows_is_the_same_from_a_part_of_the_frame() -> None:
    """200 plans: as much of a frame as is looked at, by the kernel, and the whole frame by NumPy."""
    if augment.kernel() is None:
        pytest.skip("no AVX2, or no C compiler")
    frame, rng = picture(101, 70), np.random.default_rng(2)
    height, width, _ = frame.shape
    drawn, parts = plans(keyed.mix(5, np.arange(200)), HOW), 0
    for plan in drawn:
        w, h = rng.integers(1, [width + 1, height + 1])
        x, y = rng.integers(0, [width - w + 1, height - h + 1])
        view = Augmentation(plan, (x, y, w, h), width, height)
        left, top, right, bottom = view.region
        parts += (right - left) * (bottom - top) < width * height
        poisoned = np.full((bottom - top, 3 * (right - left) + 40), 255, np.uint8)
        poisoned[:, :-40] = frame[top:bottom, left:right].reshape(bottom - top, -1)
        made = view.frame(poisoned, left, top) if view else rows_of(frame)
        wanted = frame
        for one in view._stages:
            wanted = augment.done(wanted, one)
        assert np.array_equal(made[y : y + h, 3 * x : 3 * (x + w)], wanted[y : y + h, x : x + w].reshape(h, -1)), plan
    assert parts > 50


@pytest.mark.parametrize("fresh", [False, True], ids=["frames shared", "frames of their own"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_a_decoder_augments_before_it_crops(way: str, fresh: bool, rotation: int) -> None:
    data = encode([numbered_frame(i, 96, 64) for i in range(12)], gop=6)
    clip = describe(data, "h264", rotation)
    frames = np.array([[1, 1, 4], [4, 7, 9], [0, 2, 11]]) if fresh else np.array([2, 5, 5])
    boxes = np.array([[3, 5, 40, 50], [0, 0, clip.width, clip.height], [10, 8, 30, 30]])
    drawn = plans(keyed.mix(1, np.arange(3)), RandAugment(7, 4, 0.5))
    drawn[1] = -1  # a view that stays as it is
    for pixels in (np.uint8, np.int16):
        views = np.zeros((3, 3, 32, 32, 3), pixels)
        decode_libav(ClipRequest(clip, data, frames, boxes, operations=drawn), views)
        whole = decode_frames(clip, data, np.arange(12))
        for view, plan, box, times in zip(views, drawn, boxes, np.broadcast_to(frames, (3, 3)), strict=True):
            each = Augmentation(plan, (0, 0, clip.width, clip.height), clip.width, clip.height)
            size = clip.height, -1
            augmented = [each.frame(rows_of(whole[i])).reshape(size).copy() if each else rows_of(whole[i]) for i in times]
            alone = augment.crop_resizer(3, np.arange(3), box[None], made := np.zeros((1, 3, 32, 32, 3), pixels))
            for number, rows in enumerate(augmented):
                alone.frame(number, rows)
            alone.finish()
            assert np.array_equal(view, made[0])
