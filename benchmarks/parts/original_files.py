"""Some of a user's video files, and two datasets made of exactly these: the files as they are, and as h264-fast."""

import json
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import pyarrow.parquet as pq

from dataset_builders import build_unlabeled_hybrid
from pipeline.children import command, environment
from pipeline.decoding.decode import find_video
from pipeline.storage.manifest import Manifest

LONGEST = 300.0  # seconds; longer files would be cut, and building clips of 40 films takes hours
SEED = 0


@dataclass(frozen=True, slots=True)
class Built:
    """A dataset that was built of the files."""

    dataset: Path
    clips: int
    bytes: int  # of the clips
    seconds: float  # that building took, its start included


@dataclass(frozen=True, slots=True)
class OriginalFiles:
    """What the peers read, and what tubecell reads instead."""

    files: list[Path]  # links to those that both datasets have
    bytes: int
    width: int  # pixels, the median
    height: int
    codecs: str
    copy: Built
    h264_fast: Built


def dataset_files(dataset: Path) -> list[bytes]:
    """The source files of a dataset's clips, where they are still there, shuffled; not those that clips were cut from.

    Raises ValueError if there is none.
    """
    description = dataset / "dataset.json"
    sources = json.loads(description.read_text())["sources"] if description.is_file() else {}
    folders = {root: os.fsencode(path) for source in sources.values() for root, path in source.get("folders", {}).items()}
    table = pq.read_table(dataset / "manifest.parquet", columns=["root", "path", "start"])
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


def build_of_files(paths: Sequence[bytes], number: int, narrowest: int, folder: Path) -> OriginalFiles:
    """The first `number` of the files that can be taken, and the datasets built of them in `folder`.

    Raises ValueError if none of them can be taken, RuntimeError if a build fails.
    """
    passed_over: Counter[str] = Counter()
    videos = folder / "videos"
    videos.mkdir()
    for path, _ in zip(_fitting(paths, narrowest, passed_over), range(number), strict=False):
        suffix = Path(os.fsdecode(path)).suffix.lower()
        (videos / f"{len(os.listdir(videos)):06d}{suffix}").symlink_to(os.path.abspath(os.fsdecode(path)))
    said = f"passed over: {', '.join(f'{count} {why}' for why, count in passed_over.most_common())}" if passed_over else ""
    if not (chosen := len(os.listdir(videos))):
        raise ValueError(f"none of the {len(paths)} files can be taken; {said}")
    print(f"building two datasets of {chosen} of the {len(paths)} files" + (f"; {said}" if said else ""), flush=True)
    copy, h264_fast = (_build(videos, preset, folder / preset) for preset in ("copy", "h264-fast"))
    taken = set(_names(copy.dataset)) & set(_names(h264_fast.dataset))
    files = [file for file in sorted(videos.iterdir()) if file.name in taken]
    if not files:
        raise ValueError(f"the builder takes none of the {chosen} files, such as {os.fsdecode(paths[0])!r}")
    manifest = Manifest(copy.dataset)
    width, height = (int(sorted(side)[len(manifest) // 2]) for side in (manifest.width, manifest.height))
    codecs = ", ".join(sorted(set(manifest.column("codec").to_pylist())))
    return OriginalFiles(files, sum(file.stat().st_size for file in files), width, height, codecs, copy, h264_fast)


def _fitting(paths: Sequence[bytes], narrowest: int, passed_over: Counter[str]) -> Iterator[bytes]:
    """Those worth measuring; the others are counted."""
    for path in paths:
        try:
            with av.open(os.fsdecode(path), metadata_errors="replace") as container:
                stream = find_video(container)
                width = stream.width if stream else 0
                seconds = (container.duration or 0) / 1e6
        except (av.FFmpegError, OSError, ValueError):
            passed_over["are no videos"] += 1
            continue
        if not width:
            passed_over["have no video stream"] += 1
        elif width < narrowest:
            passed_over[f"are less than {narrowest} px wide (--min-width)"] += 1
        elif seconds > LONGEST:
            passed_over[f"are longer than {LONGEST:g} s"] += 1
        else:
            yield path


def _build(videos: Path, preset: str, dataset: Path) -> Built:
    """In a process of its own, without torch."""
    options = ["--folder", f"original={videos}", "--out", str(dataset), "--preset", preset]
    began = time.perf_counter()
    builder = command(build_unlabeled_hybrid.main, *options)
    status = subprocess.run(builder, env=environment(), stdout=subprocess.DEVNULL).returncode
    if status:
        raise RuntimeError(f"building {preset} clips of {videos} ended with status {status}")
    seconds = time.perf_counter() - began
    sizes = pq.read_table(dataset / "manifest.parquet", columns=["size"])["size"].to_pylist()
    return Built(dataset, len(sizes), sum(sizes), seconds)


def _names(dataset: Path) -> list[str]:
    """Of the files that clips were made of."""
    paths = pq.read_table(dataset / "manifest.parquet", columns=["path"])["path"].to_pylist()
    return [os.fsdecode(path).rpartition("/")[2] for path in paths]
