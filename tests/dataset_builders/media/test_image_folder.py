"""Folders of images as sources."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_videos import make_clips, run_ffmpeg
from test_clip_maker import BITS, ENCODING, numbered_video, numbers, rejected, taken
from test_delivery import described

from dataset_builders.media.image_folder import ImageFolder
from dataset_builders.media.presets import EncodeOptions
from dataset_builders.media.rejects import Reason, RejectedError
from pipeline.decoding.decode import decode_frames

EXTENSIONS = {"jpg": ["-q:v", "2"], "png": [], "webp": ["-quality", "90"]}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """{jpg,png,webp}/img_1 ... img_120, without leading zeros."""
    root: Path = tmp_path_factory.mktemp("images")
    video = numbered_video(root / "x.mp4", "-c:v", "libx264", "-qp", "4", frames=120)
    for extension, quality in EXTENSIONS.items():
        (root / extension).mkdir()
        codec = ["-c:v", "libwebp"] if extension == "webp" else []
        run_ffmpeg("-i", video, *codec, *quality, root / extension / f"img_%d.{extension}")
    return root


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """A copy of the JPEGs to do harm to."""
    return Path(shutil.copytree(images / "jpg", tmp_path / "folder"))


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("preset", ENCODING)
def test_images_in_the_order_of_their_numbers(images: Path, extension: str, preset: str) -> None:
    (clip,) = taken(make_clips(images / extension, EncodeOptions(preset), kind="frames", rate=12.0))
    assert numbers(clip) == list(range(120))
    row = clip.row
    assert (row["fps"], row["start"], row["end"], row["path"]) == (12.0, None, None, extension.encode())
    assert (row["matrix"], row["range"], row["width"], row["height"]) == ("bt601", "limited", 160, 32)


PNG_MODES = {"grey": "L", "16 bits": "I;16", "alpha": "LA", "1 bit": "1", "palette": "P", "colours": "RGB", "mixed": ""}


def numbered_png(number: int, mode: str) -> Image.Image:
    """Its number in bars of black and white; below them every fourth pixel is white."""
    pixels = np.zeros((64, 16 * BITS), np.uint8)
    pixels[:32] = np.repeat(number >> np.arange(BITS) & 1, 16) * 255
    pixels[32::2, ::2] = 255
    return Image.fromarray(pixels.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("name", PNG_MODES)
def test_pngs_of_all_kinds(tmp_path: Path, name: str) -> None:
    """As frames and as a video: the same pictures, whatever their pixels are, also where that changes in the middle."""
    (folder := tmp_path / "png").mkdir()
    others = [mode for mode in PNG_MODES.values() if mode]
    for number in range(21):
        numbered_png(number, PNG_MODES[name] or others[number // 2 % len(others)]).save(folder / f"{number}.png")
    run_ffmpeg("-framerate", "10", "-i", folder / "%d.png", "-c", "copy", video := tmp_path / "x.mov")
    for path, request in ((folder, {"kind": "frames", "rate": 10.0}), (video, {})):
        (clip,) = taken(make_clips(path, **request))
        assert numbers(clip) == list(range(21))
        (small,) = taken(make_clips(path, EncodeOptions("mjpeg", short_side=32), **request))
        levels = decode_frames(described(small), small.data, np.arange(21))[:, 18:].mean(axis=(1, 2, 3))
        np.testing.assert_allclose(levels, 255 / 4, atol=3)
    (copied,) = taken(make_clips(video, EncodeOptions("copy")))
    levels = decode_frames(described(copied), copied.data, np.arange(21))[:, 32:].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels, 255 / 4, atol=1)
    assert numbers(copied) == list(range(21))


def test_jpegs_of_all_kinds(tmp_path: Path) -> None:
    """In a video of which FFmpeg builds its filters anew at each change: none lost, none twice."""
    for number in range(24):
        sampling = {"subsampling": (2, 0)[number // 4 % 2]} if number // 2 % 2 else {}
        numbered_png(number, "RGB" if sampling else "L").save(tmp_path / f"{number}.jpg", quality=95, **sampling)
    run_ffmpeg("-framerate", "10", "-start_number", "2", "-i", tmp_path / "%d.jpg", "-c", "copy", tmp_path / "x.mov")
    (clip,) = taken(make_clips(tmp_path / "x.mov"))
    assert numbers(clip) == list(range(2, 24))


def test_some_of_the_images(images: Path) -> None:
    (clip,) = taken(make_clips(images / "jpg", kind="frames", rate=10.0, first_frame=20, num_images=50))
    assert numbers(clip) == list(range(20, 70))
    assert (clip.row["start"], clip.row["end"]) == (2.0, 7.0)
    reject = rejected(make_clips(images / "jpg", kind="frames", rate=10.0, first_frame=100, num_images=30))
    assert (reject.reason, reject.detail) == (
        Reason.TRUNCATED,
        "30 images are wanted from place 100 on, the folder holds 120 in all",
    )
    assert rejected(make_clips(images / "jpg", kind="frames", rate=10.0, first_frame=200)).reason is Reason.TRUNCATED


def test_many_images_are_cut(images: Path) -> None:
    clips = taken(make_clips(images / "png", EncodeOptions(max_seconds=2.0), kind="frames", rate=20.0))
    assert [numbers(clip) for clip in clips] == [list(range(first, first + 40)) for first in (0, 40, 80)]
    assert [(clip.row["start"], clip.row["end"]) for clip in clips] == [(0, 2), (2, 4), (4, 6)]


@pytest.mark.parametrize("harm", ["empty", "half", "text", "noise", "vanished", "directory"])
@pytest.mark.parametrize("name", ["img_1.jpg", "img_77.jpg", "img_120.jpg"])
def test_a_broken_image_is_named(folder: Path, harm: str, name: str) -> None:
    image = folder / name
    data = image.read_bytes()
    noise = bytearray(data)
    noise[len(data) // 2 : len(data) // 2 + 200] = b"\xff\x00\xab\xcd" * 50
    image.unlink()
    if harm == "vanished":
        image.symlink_to("nowhere")
    elif harm == "directory":
        image.mkdir()
    else:
        image.write_bytes(
            {"empty": b"", "half": data[: len(data) // 2], "text": b"no image " * 99, "noise": bytes(noise)}[harm]
        )
    reject = rejected(make_clips(folder, kind="frames", rate=10.0))
    assert reject.reason is (Reason.UNREADABLE if harm in ("vanished", "directory") else Reason.DAMAGED)
    assert name in reject.detail


def test_a_change_of_size_is_named(folder: Path) -> None:
    run_ffmpeg("-f", "lavfi", "-i", "testsrc2=size=96x64", "-frames:v", "1", folder / "img_50.jpg")
    reject = rejected(make_clips(folder, kind="frames", rate=10.0))
    assert (reject.reason, reject.detail) == (Reason.UNSUPPORTED, "img_50.jpg is 96x64 pixels, img_1.jpg is 160x32")


def test_photographs_are_shown_upright(tmp_path: Path) -> None:
    """Each by its own EXIF, as long as they are as large as the first."""
    for number in range(20):
        exif = Image.Exif()
        exif[0x112] = 1 + number % 4  # upright, mirrored, upside down, both
        turned = [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM]
        picture = numbered_png(number, "L")
        picture = picture.transpose(turned[number % 4 - 1]) if number % 4 else picture
        picture.save(tmp_path / f"{number}.jpg", quality=95, exif=exif)
    (clip,) = taken(make_clips(tmp_path, kind="frames", rate=10.0))
    assert numbers(clip) == list(range(20))
    exif[0x112] = 6
    numbered_png(13, "L").save(tmp_path / "13.jpg", exif=exif)
    reject = rejected(make_clips(tmp_path, kind="frames", rate=10.0))
    assert (reject.reason, reject.detail) == (Reason.UNSUPPORTED, "13.jpg is 64x160 pixels, 0.jpg is 160x64")


def test_images_of_another_kind_in_the_clothes_of_a_jpeg(folder: Path, images: Path) -> None:
    shutil.copy(images / "png" / "img_60.png", folder / "img_60.jpg")
    reject = rejected(make_clips(folder, kind="frames", rate=10.0))
    assert reject.reason is Reason.DAMAGED
    assert "img_60.jpg" in reject.detail


def test_folders_that_are_no_source(tmp_path: Path, folder: Path, images: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").touch()
    assert rejected(make_clips(tmp_path / "none", kind="frames", rate=9.0)).reason is Reason.NOT_VIDEO
    assert rejected(make_clips(tmp_path / "nowhere", kind="frames", rate=9.0)).reason is Reason.UNREADABLE
    assert rejected(make_clips(folder, kind="frames")).reason is Reason.UNSUPPORTED  # at which rate?
    assert rejected(make_clips(folder, kind="frames", rate=0.0)).reason is Reason.UNSUPPORTED
    shutil.copy(images / "png" / "img_1.png", folder / "other.png")
    reject = rejected(make_clips(folder, kind="frames", rate=9.0))
    assert (reject.reason, reject.detail) == (Reason.UNSUPPORTED, "the folder holds images of 2 formats: jpeg, png")


def test_names_are_sorted_by_their_numbers_and_may_be_anything(tmp_path: Path, images: Path) -> None:
    names = [b"-i 1.jpg", b"2.jpg", b"10.jpg", b"a%04d.JPG", b"frame\n3.jpeg", b"frame\xff20.jpg"]
    for number, name in enumerate(names, start=1):
        shutil.copy(images / "jpg" / f"img_{number}.jpg", os.path.join(os.fsencode(tmp_path), name))
    order = [b"2.jpg", b"10.jpg", b"-i 1.jpg"]
    listed = ImageFolder.list(os.fsencode(tmp_path), 10).names
    assert [name for name in listed if name in order] == order
    options = EncodeOptions(min_frames=1)
    (clip,) = taken(make_clips(tmp_path, options, kind="frames", rate=10.0))
    assert sorted(numbers(clip)) == list(range(6))
    assert numbers(clip) == [names.index(name) for name in listed]
    with pytest.raises(RejectedError):
        ImageFolder.list(os.fsencode(tmp_path / "nowhere"), 10)
