import numpy as np
import pytest

from dataset_builders.media.moving_shapes import MOTIONS, Film, render

SMALL = Film(64, 64, 3)


@pytest.mark.parametrize("motion", MOTIONS)
def test_shapes_move_as_the_folder_says(motion: str) -> None:
    before, after = MOTIONS[motion](0.10, 0.10), MOTIONS[motion](0.12, 0.12)
    moved = [np.sign(round(getattr(after, name) - getattr(before, name), 6)) for name in ("right", "down", "turns", "swell")]
    expected = {
        "slide-right": [1, 0, 0, 0],
        "slide-left": [-1, 0, 0, 0],
        "fall": [0, 1, 0, 0],
        "rise": [0, -1, 0, 0],
        "sway": [1, 0, 0, 0],
        "bob": [0, 1, 0, 0],
        "pulse": [0, 0, 0, 1],
        "rest": [0, 0, 0, 0],
        "orbit": [-1, 1, 0, 0],  # clockwise, on a picture whose y points down
        "orbit-back": [-1, -1, 0, 0],
        "turn": [0, 0, 1, 0],
        "turn-back": [0, 0, -1, 0],
    }
    assert moved == expected[motion]


def test_pictures_have_contrast_and_motion() -> None:
    frames = render("orbit", (0, 7)).astype(float)
    assert frames.shape == (90, 128, 160, 3)
    assert frames.std() > 20
    assert np.abs(np.diff(frames, axis=0)).mean() > 0.5
    assert not np.array_equal(render("orbit", (0, 7), SMALL), render("orbit", (0, 8), SMALL))


def test_a_frame_does_not_tell_the_motion() -> None:
    """The first frame is the same picture in all that have no phase; and of later ones, means over many clips agree in every
    quarter of the picture: where shapes are, and how large, is distributed alike."""
    for seed in range(3):
        first = [render(motion, (1, seed), Film(64, 64, 1)) for motion in ("slide-right", "rise", "rest")]
        assert all(np.array_equal(first[0], other) for other in first)
    clips, film = 60, Film(32, 32, 25)
    quarters = {}
    for motion in ("slide-right", "orbit", "pulse"):
        last = np.stack([render(motion, (2, clip), film)[-1] for clip in range(clips)]).astype(float)
        quarters[motion] = last.std(axis=-1).reshape(clips, 2, 16, 2, 16).mean(axis=(2, 4)).reshape(clips, 4)
    for motion, values in quarters.items():
        difference = values - quarters["slide-right"]  # the same clips: paired
        error = difference.std(axis=0) / np.sqrt(clips)
        assert (np.abs(difference.mean(axis=0)) <= 4 * error).all(), motion


def test_what_leaves_on_one_side_comes_in_on_the_other() -> None:
    """A shape that slides stays whole: as many pixels as it has at the start, all of the time."""
    frames = render("slide-right", (0, 3), Film(64, 64, 60)).astype(int)
    background = np.median(frames, axis=0)
    covered = (np.abs(frames - background).max(axis=-1) > 40).mean(axis=(1, 2))
    assert covered.min() > 0.5 * covered.max()
