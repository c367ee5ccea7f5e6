"""The videos that a command line names: files, folders, lists, or the clips of a dataset."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from pipeline.decoding.video_file import VideoFile, understood
from pipeline.sampling.splits import checked_split, rows_of_split
from pipeline.storage.manifest import Manifest
from pipeline.storage.output_folder import is_dataset
from pipeline.storage.remote import is_url, on_disk
from pipeline.storage.shards import ShardReader

LIST = ".txt"
ENDS = 1 << 16  # bytes
VIDEOS = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".flv", ".3gp", ".mpg", ".mpeg", ".wmv", ".ts", ".m2ts", ".ogv")


@dataclass(frozen=True, slots=True)
class ListedVideo:
    """A video that has not been opened yet."""

    name: str
    """Its file's without the extension, from the folder on that was given; or the clip's key."""
    source: str
    """The path of the file, or the row of the dataset."""
    bytes: int

    def digest(self) -> str:
        """Of a file's beginning and end, which tell it from another of its size; of a clip nothing."""
        try:
            with open(self.source, "rb") as file:
                begin = file.read(ENDS)
                file.seek(max(0, self.bytes - ENDS))
                return xxhash.xxh3_64_hexdigest(begin + file.read(ENDS))
        except OSError:
            return ""


Open = Callable[[ListedVideo], VideoFile]
"""In any thread. Raises OSError and DecodeError."""


def find_videos(places: Sequence[str], split: str | None) -> list[ListedVideo]:
    """By name. Raises ValueError for what is not there, for no video at all, and for two of one name; OSError."""
    dataset = _dataset(places)
    if dataset is None and split is not None:
        raise ValueError(f"--split {split} is of a dataset, and {places[0]} is none")
    by_name: dict[str, ListedVideo] = {}
    for video in _files(places) if dataset is None else _clips(dataset, split or "all"):
        if (other := by_name.setdefault(video.name, video)) is not video:
            raise ValueError(
                f"{other.source} and {video.source} are both called {video.name}, and so would their features be; give one of "
                "them to another command, with another --out"
            )
    if not by_name:
        raise ValueError(f"{', '.join(places)}: there is no video; known are files that end with {', '.join(VIDEOS)}")
    return [by_name[name] for name in sorted(by_name)]


def opener(places: Sequence[str]) -> Open:
    """How those of these places are opened. Raises ValueError as `find_videos`."""
    if (dataset := _dataset(places)) is None:
        return lambda video: understood(video.name, Path(video.source))
    manifest = Manifest(dataset)
    reader = ShardReader(manifest.root)

    def opened(video: ListedVideo) -> VideoFile:
        """The manifest says what there is to know of a clip, but for the times of frames that are not equally spaced."""
        row = int(video.source)
        clip = manifest.clip(row)
        data = reader.read(clip)
        if not clip.pts_step:
            return understood(clip.key, data)
        rate = float(manifest.fps[row])
        return VideoFile(clip, data, np.arange(clip.num_frames) / rate, clip.num_frames / rate, pixel_aspect=1.0)

    return opened


def _dataset(places: Sequence[str]) -> str | None:
    found = next((place for place in places if is_url(place) or is_dataset(place)), None)
    if found is not None and len(places) > 1:
        raise ValueError(f"{found} is a dataset: give it alone, and other videos to another command")
    return found


def _clips(dataset: str, split: str) -> Iterator[ListedVideo]:
    manifest = Manifest(dataset)
    for row in rows_of_split(manifest, checked_split(split)).tolist():
        clip = manifest.clip(row)
        yield ListedVideo(clip.key, str(row), clip.size)


def _files(places: Sequence[str]) -> Iterator[ListedVideo]:
    seen = set()
    for place in places:
        for path in _paths(root := on_disk(place)):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                name = os.fspath(path.relative_to(root).with_suffix("")) if root.is_dir() else path.stem
                yield ListedVideo(name, str(path), path.stat().st_size if path.is_file() else 0)


def _paths(path: Path) -> Iterator[Path]:
    """A file of a list or of the command line is one to take or to report, whatever it is called."""
    if path.is_dir():
        every = (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
        yield from sorted(file for file in every if file.suffix.lower() in VIDEOS and not file.name.startswith("."))
    elif path.suffix.lower() == LIST:
        lines = (line.strip() for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines())
        yield from (path.parent / line for line in lines if line)
    else:
        yield path


def shares(videos: Sequence[ListedVideo], number: int) -> list[list[ListedVideo]]:
    """Divided among ranks by bytes: each in turn, from the largest on, to who has least."""
    loads, found = [0] * number, [list[ListedVideo]() for _ in range(number)]
    for video in sorted(videos, key=lambda video: -video.bytes):
        least = loads.index(min(loads))
        loads[least] += video.bytes + 1
        found[least].append(video)
    return found
