"""Crops, resized: the compiled kernel against torch, byte for byte."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from pipeline.decoding import resize
from pipeline.decoding.compiled import compile_library, library_file
from pipeline.decoding.resize import CropResizer, TorchResizer, axis, crop_resizer, find_kernel, kernel

FLAGS = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
needs_kernel = pytest.mark.skipif("avx2" not in FLAGS or not shutil.which("cc"), reason="no AVX2, or no C compiler")


@pytest.fixture
def fresh_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """resize.c with nothing beside it, an empty cache, and a process that has not looked into it yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(resize, "SOURCE", Path(shutil.copy(resize.SOURCE, tmp_path)))
    find_kernel.cache_clear()
    yield tmp_path
    find_kernel.cache_clear()


def resized(
    resizer: type[CropResizer] | type[TorchResizer], frames: np.ndarray, places: np.ndarray, boxes: np.ndarray, *size: int
) -> np.ndarray:
    num_views, num_frames = len(boxes), places.shape[-1]
    # views with other bytes before and after them, which must stay
    memory = np.full((num_views + 2, num_frames, *size, 3), 7, np.uint8)
    views = memory[1:-1]
    made = resizer(places, boxes, views) if resizer is CropResizer else TorchResizer(len(frames), places, boxes, views)
    for number, frame in enumerate(frames):
        made.frame(number, frame.reshape(len(frame), -1))
    made.finish()
    assert (memory[0] == 7).all()
    assert (memory[-1] == 7).all()
    return views


@pytest.fixture(params=[True, False], ids=["16 at a time, where the processor can", "8 at a time"], scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to do the rows."""
    with pytest.MonkeyPatch.context() as patch:
        if not request.param:
            patch.setattr(resize, "by_16", lambda: False)
        axis.cache_clear()
        yield
    axis.cache_clear()


@needs_kernel
@pytest.mark.usefixtures("rows")
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_kernel_is_torch_bit_for_bit(data: st.DataObject) -> None:
    def number(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    size, height, width = (number(1, 80), number(1, 80)), number(1, 300), number(1, 300)
    boxes = []
    for _ in range(number(1, 3)):
        w = number(1, width) if number(0, 3) else min(width, size[1])  # sides that stay as they are, too
        h = number(1, height) if number(0, 3) else min(height, size[0])
        boxes.append((number(0, width - w), number(0, height - h), w, h))
    distinct, shown = number(1, 3), number(3, 5)
    rng = np.random.default_rng(number(0, 2**32))
    frames = rng.integers(0, 256, (distinct, height, width, 3), np.uint8)
    if number(0, 1):  # the views share their frames, some of which stand twice
        places = np.sort(np.concatenate([np.arange(distinct), rng.integers(0, distinct, shown - distinct)]))
    else:
        places = np.sort(rng.integers(0, distinct, (len(boxes), shown)), axis=1)
        used, places = np.unique(places, return_inverse=True)
        frames, places = frames[used], places.reshape(len(boxes), shown)
    ours = resized(CropResizer, frames, places, np.array(boxes), *size)
    np.testing.assert_array_equal(ours, resized(TorchResizer, frames, places, np.array(boxes), *size))


@needs_kernel
@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize("side", [112, 224])
def test_all_shapes_of_multi_scale_crop(side: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 256, 340, 3), np.uint8)
    sides = (256, 224, 192, 168)
    boxes = np.array([(340 - w, 256 - h, w, h) for w in sides for h in sides])
    ours = resized(CropResizer, frames, np.array([0]), boxes, side, side)
    for view, (x, y, w, h) in zip(ours, boxes.tolist(), strict=True):
        crop = torch.from_numpy(frames[:, y : y + h, x : x + w]).permute(0, 3, 1, 2)
        expected = interpolate(crop, (side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        np.testing.assert_array_equal(view, expected.numpy())


@needs_kernel
def test_of_many_processes_one_compiles(fresh_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = fresh_kernel / "count"
    (fresh_kernel / "cc").write_text(f'#!/bin/sh\necho once >> {count}\nsleep 0.3\nexec {shutil.which("cc")} "$@"\n')
    (fresh_kernel / "cc").chmod(0o755)
    monkeypatch.setenv("CC", str(fresh_kernel / "cc"))
    code = f"from pipeline.decoding import resize\nresize.SOURCE = resize.Path({str(resize.SOURCE)!r})\nassert resize.kernel()"
    ranks = [subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[3]) for _ in range(3)]
    assert [rank.wait() for rank in ranks] == [0, 0, 0]
    assert kernel() is not None and count.read_text() == "once\n"
    assert [file.suffix for file in fresh_kernel.glob("tubecell/*")] == [".so"]


@needs_kernel
def test_what_the_installation_built_is_taken_unless_the_source_is_another(fresh_kernel: Path) -> None:
    built = compile_library(resize.SOURCE, fresh_kernel)
    assert kernel() is not None and find_kernel()._name == str(built)
    resize.SOURCE.write_text(resize.SOURCE.read_text() + "/* changed */")
    library_file(resize.SOURCE, fresh_kernel).write_text("for another system")
    find_kernel.cache_clear()
    assert kernel() is not None and Path(find_kernel()._name).parent == fresh_kernel / "tubecell"


@pytest.mark.parametrize(
    ("compiler", "why"), [("", "there is no C compiler"), ("false", "false cannot compile resize.c: status 1")]
)
def test_without_a_compiler_torch_does_it_and_says_so(
    fresh_kernel: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, why: str
) -> None:
    monkeypatch.setenv("CC", compiler)
    if not compiler:
        monkeypatch.setenv("PATH", str(fresh_kernel))
    views = np.zeros((1, 1, 8, 8, 3), np.uint8)
    made = crop_resizer(1, np.array([0]), np.array([[0, 0, 16, 16]]), views)
    assert isinstance(made, TorchResizer)
    made.frame(0, np.full((16, 48), 9, np.uint8))
    made.finish()
    assert (views == 9).all()
    assert why in find_kernel()
    assert not list(fresh_kernel.glob("tubecell/*")), "nothing half-made is left"


def test_weights_are_those_of_a_triangle() -> None:
    first, weights, precision = resize.taps(4, 8)  # twice as large: 3/4 and 1/4
    assert first.tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    assert (weights / (1 << precision)).tolist()[1:3] == [[0.75, 0.25], [0.25, 0.75]]


@pytest.mark.parametrize("size", [(224, 224), (44, 40), (30, 37)])
@needs_kernel
def test_wide_views_are_floats_to_a_sixtyfourth(rows: None, size: tuple[int, int]) -> None:
    """Bilinear without antialiasing, as official fine-tuning resizes floats; the same numbers with and without the kernel."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 90, 110, 3), dtype=np.uint8)
    frames[1] = 77
    for left, top, wide, high in [(0, 0, 110, 90), (7, 3, 40, 44), (60, 50, 17, 16), (109, 89, 1, 1)]:
        made = []
        for resizer in (CropResizer, TorchResizer):
            views = np.full((3, 4, *size, 3), 7, np.int16)
            arguments = np.array([0, 1, 1, 2]), np.array([[left, top, wide, high]]), views[1:2]
            each = resizer(*arguments) if resizer is CropResizer else resizer(3, *arguments)
            for number, frame in enumerate(frames):
                each.frame(number, frame.reshape(90, -1))
            each.finish()
            assert (views[::2] == 7).all(), "its neighbours stay"
            made.append(views[1])
        assert np.array_equal(*made)
        crop = torch.from_numpy(frames[:, top : top + high, left : left + wide]).permute(0, 3, 1, 2).double()
        wanted = interpolate(crop, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).numpy()
        assert np.abs(made[0][[0, 1, 3]] / 128 - wanted).max() < 1 / 32
        assert (made[0][1] == 77 * 128).all()
