"""Some of a user's video files, and datasets made of exactly these: the files as they are, as h264-fast, as h264-plain. Of long
files a piece is taken, without encoding it again."""

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import pyarrow.compute as pc

from benchmarks.parts.generated_dataset import run_builder
from dataset_builders import build_unlabeled_hybrid
from dataset_builders.media.ffmpeg_process import ffmpeg_path
from dataset_builders.media.probe import VideoInfo, probe
from dataset_builders.media.rejects import RejectedError
from dataset_builders.media.transcode import Timing, Wanted
from pipeline.storage.columns import read_rows
from pipeline.storage.manifest import Manifest

LONGEST = 300.0  # seconds; building clips of 40 films takes hours
PIECE = 60  # seconds that are taken from the middle of a longer file
SEED = 0


@dataclass(frozen=True, slots=True)
class Built:
    """A dataset that was built of the files."""

    dataset: Path
    clips: int
    bytes: int  # of the clips
    seconds: float  # that building took, its start included
    names: set[str]  # of the files that clips were made of


@dataclass(frozen=True, slots=True)
class OriginalFiles:
    """What the peers read, and what tubecell reads instead."""

    files: list[Path]  # links to those that all datasets have
    bytes: int
    width: int  # pixels, the median
    height: int
    codecs: str
    copy: Built
    h264_fast: Built
    h264_plain: Built | None

    @property
    def built(self) -> dict[str, Built]:
        """By preset, those that are encoded again."""
        found = {"h264-fast": self.h264_fast, "h264-plain": self.h264_plain}
        return {preset: built for preset, built in found.items() if built}


def dataset_files(dataset: Path) -> list[bytes]:
    """The source files of a dataset's clips, where they are still there, shuffled; not those that clips were cut from.

    Raises ValueError if there is none.
    """
    description = dataset / "dataset.json"
    sources = json.loads(description.read_text())["sources"] if description.is_file() else {}
    folders = {root: os.fsencode(path) for source in sources.values() for root, path in source.get("folders", {}).items()}
    table = read_rows(dataset / "manifest.parquet", ["root", "path", "start"])
    rows = zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    paths = {os.path.join(folders[root], path) for root, path, start in rows if start is None and root in folders}
    if not (there := sorted(path for path in paths if os.path.isfile(path))):
        raise ValueError(f"none of the {len(table)} clips' source files is there as a whole")
    random.Random(SEED).shuffle(there)
    return there


def shuffled_files(folder: Path) -> list[bytes]:
    """Everything in and below a folder, in an order that is always the same. Raises ValueError if there is nothing."""
    if not folder.is_dir():
        raise ValueError(f"--videos {folder}: there is no such folder")
    paths = sorted(os.path.join(where, name) for where, _, names in os.walk(os.fsencode(folder)) for name in names)
    if not paths:
        raise ValueError(f"--videos {folder}: the folder is empty")
    random.Random(SEED).shuffle(paths)
    return paths


def build_of_files(paths: Sequence[bytes], number: int, narrowest: int, folder: Path, *, plain: bool = True) -> OriginalFiles:
    """The first `number` of the files that can be taken, pieces of the long ones, and datasets built of them in `folder`; as
    h264-plain only if that is wanted.

    Raises ValueError if none of them can be taken, RuntimeError if a build fails.
    """
    chosen, said = chosen_videos(paths, number, longest=inf, narrowest=narrowest)
    videos, long = folder / "videos", 0
    videos.mkdir()
    for place, (name, info) in enumerate((os.fsdecode(path), info) for path, info in chosen):
        if (seconds := length(info)) > LONGEST:
            long += 1
            cut(Path(name), (seconds - PIECE) / 2, videos / f"{place:06d}.mkv")
        else:
            (videos / f"{place:06d}{Path(name).suffix.lower()}").symlink_to(os.path.abspath(name))
    said += f"; of {long} that are longer than {LONGEST:g} s, {PIECE} s from the middle" if long else ""
    presets = ("copy", "h264-fast", "h264-plain") if plain else ("copy", "h264-fast")
    print(f"building {len(presets)} small datasets of {len(chosen)} of the {len(paths)} files{said}", flush=True)
    built = {preset: _build(videos, preset, folder / preset) for preset in presets}
    taken = set.intersection(*(each.names for each in built.values()))
    files = [file for file in sorted(videos.iterdir()) if file.name in taken]
    if not files:
        raise ValueError(f"the builder takes none of the {len(chosen)} files, such as {os.fsdecode(paths[0])!r}")
    manifest = Manifest(built["copy"].dataset)
    width, height = (int(sorted(side)[len(manifest) // 2]) for side in (manifest.width, manifest.height))
    codecs = ", ".join(sorted(set(manifest.column("codec").to_pylist())))
    datasets = built["copy"], built["h264-fast"], built.get("h264-plain")
    return OriginalFiles(files, sum(file.stat().st_size for file in files), width, height, codecs, *datasets)


def length(info: VideoInfo) -> float:
    """Of a video in seconds."""
    return Timing.of(info, Wanted()).num_frames / float(info.rate)


def cut(video: Path, start: float, out: Path) -> None:
    """Copy `PIECE` seconds of its picture, from the key frame before `start` on. Raises ValueError if FFmpeg cannot."""
    what = ["-i", str(video.absolute()), "-t", str(PIECE), "-map", "0:V:0", "-c", "copy", "-avoid_negative_ts", "make_zero"]
    command = [ffmpeg_path(), "-nostdin", "-loglevel", "error", "-ss", f"{start:.3f}", *what, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        raise ValueError(f"{video}: FFmpeg cannot cut a piece out of it: {done.stderr.strip()[-300:]}")


def chosen_videos(
    paths: Sequence[bytes], number: int, *, longest: float, narrowest: int = 0
) -> tuple[list[tuple[bytes, VideoInfo]], str]:
    """The first `number` of the files that are videos, of at most `longest` seconds and at least `narrowest` pixels wide; and
    what to say of those passed over. Raises ValueError if none is one."""
    chosen, passed = list[tuple[bytes, VideoInfo]](), Counter[str]()
    for path in paths:
        if len(chosen) == number:
            break
        try:
            info = probe(path)
        except RejectedError as error:
            passed[error.reason] += 1
            continue
        if info.width < narrowest:
            passed[f"are less than {narrowest} px wide (--min-width)"] += 1
        elif length(info) > longest:
            passed[f"are longer than {longest:g} s"] += 1
        else:
            chosen.append((path, info))
    said = f"; passed over: {', '.join(f'{count} {why}' for why, count in passed.most_common())}" if passed else ""
    if not chosen:
        raise ValueError(f"none of the {len(paths)} files can be taken{said}")
    return chosen, said


def _build(videos: Path, preset: str, dataset: Path) -> Built:
    began = time.perf_counter()
    run_builder(build_unlabeled_hybrid.main, "--folder", f"original={videos}", "--out", dataset, "--preset", preset)
    seconds = time.perf_counter() - began
    table = read_rows(dataset / "manifest.parquet", ["size", "path"])
    names = {os.fsdecode(path).rpartition("/")[2] for path in table["path"].to_pylist()}
    return Built(dataset, len(table), pc.sum(table["size"]).as_py() or 0, seconds, names)
