import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import keyed
from pipeline.sampling import crops

QUICK = settings(derandomize=True, database=None, deadline=None, max_examples=150)
SIDES = st.integers(16, 600) | st.integers(16, 4320)
SIZES = st.sampled_from([32, 112, 224, 384]).map(lambda side: (side, side)) | st.tuples(
    st.integers(8, 400), st.integers(8, 400)
)


@QUICK
@given(width=SIDES, height=SIDES, size=SIZES, seed=st.integers(0, 99), count=st.integers(1, 4))
def test_every_box_lies_inside_its_frame(width: int, height: int, size: crops.Size, seed: int, count: int) -> None:
    keys = keyed.mix(seed, np.arange(20))
    w, h = np.full(20, width), np.full(20, height)
    for boxes in (
        crops.multi_scale_crop(keys, w, h, size),
        crops.random_resized_crop(keys, w, h),
        crops.random_scale_crop(keys, w, h, size),
        crops.long_side_crops(w, h, size, count).reshape(-1, 4),
        crops.whole_frames(w, h),
    ):
        assert boxes.dtype == np.int64
        x, y, box_w, box_h = boxes.T
        assert (np.minimum(x, y) >= 0).all() and (np.minimum(box_w, box_h) > 0).all()
        assert (x + box_w <= width).all() and (y + box_h <= height).all()


@QUICK
@given(width=SIDES, height=SIDES, size=SIZES, seed=st.integers(0, 99))
def test_boxes_have_the_aspect_of_a_view(width: int, height: int, size: crops.Size, seed: int) -> None:
    """The middle one fills the view with as much of the frame as there is; multi_scale's are scaled in either direction."""
    fits = min(width / size[1], height / size[0])  # pixels of the frame for one of the view
    x, y, w, h = crops.long_side_crops(np.array([width]), np.array([height]), size, 1)[0, 0].tolist()
    assert max(abs(w - fits * size[1]), abs(h - fits * size[0])) <= 0.5 and (w == width or h == height)
    assert abs(2 * x + w - width) <= 2 + 2 * fits and abs(2 * y + h - height) <= 2 + 2 * fits  # a pixel of the view on a side
    n = 200
    drawn = crops.multi_scale_crop(keyed.mix(seed, np.arange(n)), np.full(n, width), np.full(n, height), size)[:, 2:]
    for own, side, of_view, of_frame in ((w, drawn[:, 0], size[1], width), (h, drawn[:, 1], size[0], height)):
        sides = np.maximum((own * np.array(crops.SCALES)).astype(int), 1)
        assert set(side.tolist()) <= {min(s if abs(s - of_view) >= 3 else of_view, of_frame) for s in sides.tolist()}


def test_multi_scale_crops_cover_their_choices() -> None:
    n = 20000
    boxes = crops.multi_scale_crop(keyed.mix(0, np.arange(n)), np.full(n, 340), np.full(n, 256), (224, 224))
    _, _, w, h = boxes.T
    shapes, counts = np.unique(boxes[:, 2:], axis=0, return_counts=True)
    assert len(shapes) == 10
    assert np.abs(counts / n - 0.1).max() < 0.012
    assert len(np.unique(boxes[(w == 168) & (h == 168)][:, :2], axis=0)) == 13
    small = crops.multi_scale_crop(keyed.mix(1, np.arange(500)), np.full(500, 222), np.full(500, 400), (224, 224))
    assert (small[:, 2] <= 222).all()  # snapping to 224 may not leave the frame


def test_random_resized_crops_are_drawn_as_stated() -> None:
    n = 20000
    x, y, w, h = crops.random_resized_crop(keyed.mix(0, np.arange(n)), np.full(n, 340), np.full(n, 256)).T
    area, aspect = w * h / (340 * 256), w / h
    assert 0.078 < area.min() < 0.1 and area.max() > 0.9
    assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.36
    small = area < 0.4  # all of these fit at once: what is drawn is uniform in area and in the logarithm of the aspect ratio
    assert np.histogram(area[small], 4, (0.08, 0.4))[0] / small.sum() == pytest.approx(0.25, abs=0.02)
    logarithm = np.log(aspect[small])
    assert np.histogram(logarithm, 4, (np.log(3 / 4), np.log(4 / 3)))[0] / small.sum() == pytest.approx(0.25, abs=0.02)
    for offset, free in ((x, 340 - w), (y, 256 - h)):
        assert (offset[free > 40] / free[free > 40]).mean() == pytest.approx(0.5, abs=0.02)
    assert (x == 0).any() and (x + w == 340).any()


def test_random_resized_crops_agree_with_torchvision() -> None:
    """Quartiles of area, aspect ratio and place on a frame where many draws do not fit; the fallback exactly."""
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("torchvision.transforms").RandomResizedCrop
    n = 1000
    image = torch.empty(3, 240, 426)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([reference.get_params(image, crops.AREA, crops.ASPECT) for _ in range(n)])[:, [1, 0, 3, 2]]
    ours = crops.random_resized_crop(keyed.mix(5, np.arange(n)), np.full(n, 426), np.full(n, 240))
    for one, other in zip(theirs.T / [[426], [240], [426], [240]], ours.T / [[426], [240], [426], [240]], strict=True):
        assert np.quantile(one, [0.25, 0.5, 0.75]) == pytest.approx(np.quantile(other, [0.25, 0.5, 0.75]), abs=0.06)
    for width, height in ((1000, 16), (16, 1000), (501, 20), (20, 501)):
        y, x, h, w = reference.get_params(torch.empty(3, height, width), (0.9, 1.0), crops.ASPECT)
        assert crops.random_resized_crop(keyed.mix(0, np.arange(1)), np.array([width]), np.array([height])).tolist() == [
            [x, y, w, h]
        ]


def test_test_crops_are_squares_along_the_long_side() -> None:
    boxes = crops.long_side_crops(np.array([340, 256, 256]), np.array([256, 455, 256]), (224, 224), 3)
    assert boxes[0].tolist() == [[0, 0, 256, 256], [41, 0, 256, 256], [84, 0, 256, 256]]
    assert boxes[1].tolist() == [[0, 0, 256, 256], [0, 99, 256, 256], [0, 199, 256, 256]]
    assert boxes[2].tolist() == [[0, 0, 256, 256]] * 3
    middle = crops.long_side_crops(np.array([340, 256]), np.array([256, 455]), (224, 224), 1)
    assert middle.tolist() == [[[41, 0, 256, 256]], [[0, 99, 256, 256]]]
    two = [
        crops.long_side_crops(np.array([428]), np.array([320]), (224, 224), 1, lower=lower)[0, 0, 0] for lower in (False, True)
    ]
    assert two == [54, 53], "in a frame of 299 x 224 the middle is at 37.5: the even 38, and in training 37"
    rectangles = crops.long_side_crops(np.array([340, 340]), np.array([256, 100]), (112, 224), 3)
    assert rectangles.tolist() == [[[0, y, 340, 170] for y in (0, 43, 85)], [[x, 0, 200, 100] for x in (0, 70, 140)]]


@QUICK
@given(short=st.integers(16, 1080), more=st.integers(0, 2000), size=st.sampled_from([112, 224, 384]), count=st.integers(2, 5))
def test_test_crops_are_the_official_places_to_half_a_pixel(short: int, more: int, size: int, count: int) -> None:
    long = short + more
    resized = int(size * long / short)
    official = [int(j * (resized - size) / (count - 1)) for j in range(count)]  # in the frame resized to `size`
    boxes = crops.long_side_crops(np.array([long]), np.array([short]), (size, size), count)[0]
    scale = long / resized
    assert np.abs(boxes[:, 0] - np.array(official) * scale).max() <= max(0.5, scale)  # scale: the last may not leave the frame
    assert np.abs(boxes[:-1, 0] - np.array(official)[:-1] * scale).max() <= 0.5 + 1e-9


def test_crops_of_a_random_scale_are_drawn_as_stated() -> None:
    n = 20000
    keys = keyed.mix(5, np.arange(n))
    x, y, w, h = crops.random_scale_crop(keys, np.full(n, 448), np.full(n, 256), (224, 224)).T
    assert (w == h).all() and w.min() == round(224 * 256 / 320) and w.max() == 224
    scales = np.unique(np.rint(224 * 256 / w))
    assert scales.min() == 256 and scales.max() == 320 and len(scales) > 40
    assert abs((224 * 256 / w).mean() - 288) < 1  # uniform in what the short side is resized to
    assert abs(x.mean() - ((448 - w) / 2).mean()) < 2 and x.min() == 0 and (x + w).max() == 448 and (y + h).max() == 256
    same = crops.random_scale_crop(keys[:50], np.full(50, 448), np.full(50, 256), (224, 224), (256, 256))
    assert (same[:, 2:] == 224).all()  # as VideoMAE's code for AVA: 224 of 256


def test_whole_frames_have_sides_of_whole_patches() -> None:
    assert crops.whole_frame_size(448, 256, 256, 464, 16) == (256, 448)
    assert crops.whole_frame_size(336, 256, 256, 464, 14) == (252, 336)
    assert crops.whole_frame_size(256, 336, 256, 464, 16) == (336, 256)
    assert crops.whole_frame_size(608, 256, 256, 464, 16) == (192, 464)  # cinema: the long side decides
