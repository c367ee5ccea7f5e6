"""The kit that travels to a GPU machine without a network: clips in every encoding that is measured there, and packages.

KIT/clips/h264-fast-352x256-gop32/000.mp4 ...    a folder per `ClipSet` of the suite
KIT/site/tyro/ ...                               pure Python packages of this environment
"""

import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation
from tqdm import tqdm

from benchmarks.gpu.clips import QUICKSTART, ClipSet, encode_set, texture
from benchmarks.gpu.decoding import UNALIGNED
from benchmarks.gpu.plan import CODECS, GOPS, PARITY, SIZES
from dataset_builders.generate_clips import generate
from pipeline.decoding.decode import DecodeError, video_stream

PACKAGES = ("tyro", "docstring_parser", "typeguard", "xxhash")  # what the project needs and CUDA images with torch often lack
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def clip_sets() -> list[ClipSet]:
    """All that the suite asks for at full size, but the quickstart's."""
    sets = [ClipSet(codec, 352, 256, 32, 8, 300) for codec in CODECS]
    sets += [ClipSet("h264-fast", 352, 256, gop, 8, 300) for gop in GOPS if gop != 32]
    sets += [ClipSet("h264-fast", w, h, 32, *((4, 150) if w > 1000 else (8, 300))) for w, h in (*SIZES[1:], UNALIGNED)]
    sets += [ClipSet(codec, *size, 32, 4, 96, matrix, span) for codec, matrix, span, _, size in PARITY]
    return list({one.name: one for one in reversed(sets)}.values())  # of one name the longest, which come first


def prepare(kit: Path, videos: Path | None) -> None:
    """Make what the kit does not have yet. Without videos its clips are textures. Raises ValueError if none can be read."""
    files = sorted(path for path in videos.rglob("*") if path.suffix.lower() in VIDEOS) if videos else []
    readable = [path for path in files if _readable(path)]
    if videos and not readable:
        raise ValueError(f"--videos {videos}: none of its {len(files)} videos has 2 seconds that can be read")
    sets = clip_sets()
    for wanted in tqdm(sets, unit="set", disable=None):
        step = max(1, len(readable) // wanted.clips)
        chosen = [readable[number * step % len(readable)] for number in range(wanted.clips)] if readable else []
        contents = [footage(path, wanted) for path in chosen] or [texture(number, wanted) for number in range(wanted.clips)]
        encode_set(wanted, kit / "clips" / wanted.name, contents)
    draw_quickstart(kit / "clips" / QUICKSTART.name)
    for name in PACKAGES:
        _copy_package(name, kit / "site")
    size = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file())
    of = f"{len(readable)} videos" if readable else "textures"
    print(f"{kit}: {len(sets)} sets of clips of {of}, and packages; {size / 2**20:.0f} MiB")


def footage(path: Path, wanted: ClipSet) -> Iterator[np.ndarray]:
    """A video's frames, its middle cut to the wanted shape, forwards and backwards without end: uint8 (height, width, 3)."""
    frames: list[np.ndarray] = []
    ratio = wanted.width / wanted.height
    with av.open(str(path), metadata_errors="replace") as container:
        for frame in container.decode(video_stream(container)):
            if len(frames) == wanted.frames:
                break
            width, height = min(frame.width, round(frame.height * ratio)), min(frame.height, round(frame.width / ratio))
            x, y = (frame.width - width) // 2, (frame.height - height) // 2
            cut = frame.to_ndarray(format="rgb24")[y : y + height, x : x + width]
            whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(cut, np.uint8), format="rgb24")
            small = whole.reformat(wanted.width, wanted.height, interpolation=Interpolation.BICUBIC)
            frames.append(small.to_ndarray(format="rgb24"))
    while True:
        yield from frames
        yield from reversed(frames)


def draw_quickstart(folder: Path) -> None:
    """The quickstart's own clips."""
    if folder.is_dir():
        return
    with tempfile.TemporaryDirectory(prefix="tubecell-") as drawn:
        generate(Path(drawn), QUICKSTART.clips, seed=0)
        folder.mkdir(parents=True)
        for number, file in enumerate(sorted(Path(drawn).rglob("*.mp4"))):
            shutil.copyfile(file, folder / f"{number:03d}.mp4")


def _readable(path: Path) -> bool:
    """Whether two seconds of it can be decoded."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return any(number == 60 for number, _ in enumerate(container.decode(video_stream(container))))
    except (av.FFmpegError, DecodeError):
        return False


def _copy_package(name: str, site: Path) -> None:
    """Its files as they are installed here."""
    try:
        files = distribution(name).files or []
    except PackageNotFoundError:
        print(f"{name} is not installed here, and left out")
        return
    for file in files:
        if ".." not in file.parts and file.suffix != ".pyc":
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)
