"""A folder of features.

features.json       what decides the features (weights, windows, views, type), which is one for the whole folder; and what they
                    were made with so far: device and versions
NAME.npy            of a video: float32 or float16 (windows, width), as ActionFormer reads them, or (windows, N, width);
                    in folders as those in which it was found
NAME.parquet        or that: a row a window, with its first frame, the seconds that it is shown, and the same values as a list
videos.jsonl        a line a video: frames, fps, seconds and windows, which who counts in seconds needs; or why it has none
videos-RANK.jsonl   the same while a rank works
"""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.files import write_durably, write_whole
from train.features.stream import Opened
from train.features.videos import ListedVideo
from train.features.windows import Windows
from train.watch.json_lines import JsonLines, keep_lines, read_lines

FILE, VIDEOS = "features.json", "videos.jsonl"
FORMATS = ("npy", "parquet")
GROUP_BYTES = 64 << 20  # of a parquet file, in memory while it is written


class FeatureFolder:
    """One command's, of one kind of features."""

    def __init__(self, folder: Path, form: str, windows: Windows, asked: Mapping[str, Any], rank: int) -> None:
        """`asked` are plain values that decide the features; `form` is one of FORMATS."""
        self.folder, self._form, self._windows, self._asked = folder, form, windows, {**asked, "format": form}
        self._lines = JsonLines(folder / f"videos-{rank}.jsonl")

    def begin(self, made_with: Mapping[str, Any], videos: Iterable[ListedVideo]) -> set[str]:
        """-> the names of those that are done. One rank calls it. Raises ValueError if there are features of another kind, or
        of another video of one of these names."""
        self.folder.mkdir(parents=True, exist_ok=True)
        described, made = self.folder / FILE, list[Mapping[str, Any]]()
        if described.exists():
            try:
                told = json.loads(described.read_text())
                asked, made = told["features"], told["made_with"]
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{described} is not one of extract-features ({error}); give another --out") from None
            if differ := [name for name in {**asked, **self._asked} if asked.get(name) != self._asked.get(name)]:
                listed = ", ".join(f"{name} {asked.get(name)} instead of {self._asked.get(name)}" for name in differ)
                raise ValueError(f"{self.folder} has other features ({listed}); give another --out, or remove it")
        elif there := next(self.folder.iterdir(), None):
            raise ValueError(f"{there} is there, and no {FILE} that says what it is of; give an --out of its own")
        if made_with not in made:
            made = [*made, dict(made_with)]
        write_durably(described, (json.dumps({"features": self._asked, "made_with": made}, indent=1) + "\n").encode())
        for file in self.folder.glob("videos-*.jsonl"):
            keep_lines(file, lambda line: True)  # cut off by a kill
        lines, done = self._all_lines(), set()
        for video in videos:
            line = lines.get(video.name, {})
            if "windows" in line and self._file(video.name).exists():
                if (line["bytes"], line["digest"]) != (video.bytes, video.digest()):
                    raise ValueError(
                        f"{self._file(video.name)} is of {line['source']} ({line['bytes']:,} bytes), and {video.source} "
                        f"({video.bytes:,}) is another video; remove it, or give another --out"
                    )
                done.add(video.name)
        return done

    def spool(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Room on the disk for a video's features, in a file without a name. Raises OSError. Tokens of an hour do not fit into
        memory: of ViT-S at stride 4 they have 65 GB."""
        with tempfile.TemporaryFile(dir=self.folder) as file:
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * np.dtype(dtype).itemsize)  # a full disk is an error here
            return np.memmap(file, dtype, "w+", shape=shape)

    def keep(self, opened: Opened, features: np.ndarray) -> None:
        """A video's, whole."""
        video, (windows, _) = opened.video, opened.frames.shape
        write = partial(np.save, arr=features) if self._form == "npy" else partial(self._write_parquet, opened, features)
        self._file(video.name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(video.name), write)
        file, rate = opened.file, self._windows.rate(opened.file)
        self._tell(video, frames=file.clip.num_frames, fps=rate, seconds=file.seconds, windows=windows)

    def lose(self, video: ListedVideo, reason: str, detail: str) -> dict[str, Any]:
        """A video has no features -> its line."""
        return self._tell(video, reason=reason, detail=detail)

    def finish(self) -> list[dict[str, Any]]:
        """One rank calls it when all are done -> the lines of all videos, by name, which then are in one file."""
        lines = [*self._all_lines().values()]
        write_durably(self.folder / VIDEOS, "".join(json.dumps(line) + "\n" for line in lines).encode())
        for file in self.folder.glob("videos-*.jsonl"):
            file.unlink()
        return lines

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.{self._form}"

    def _tell(self, video: ListedVideo, **facts: Any) -> dict[str, Any]:
        line = {"video": video.name, "source": video.source, "bytes": video.bytes, "digest": video.digest(), **facts}
        self._lines.add(line)
        return line

    def _all_lines(self) -> dict[str, dict[str, Any]]:
        files = [self.folder / VIDEOS, *sorted(self.folder.glob("videos-*.jsonl"))]
        lines = [line for file in files for line in read_lines(file)]
        lines.sort(key=lambda line: (line["video"], "windows" in line))  # of a name the last holds
        return {line["video"]: line for line in lines}

    def _write_parquet(self, opened: Opened, features: np.ndarray, file: Any) -> None:
        frames, times = opened.frames, opened.file.times
        kind = pa.float16() if features.dtype == np.float16 else pa.float32()
        size, at_once = features[0].size, max(1, GROUP_BYTES // features[0].nbytes)
        fields = [
            ("first_frame", pa.int64()),
            ("begin", pa.float64()),
            ("end", pa.float64()),
            ("features", pa.list_(kind, size)),
        ]
        about = {"features": json.dumps(self._asked), "shape": json.dumps(features.shape[1:])}
        schema = pa.schema(fields, metadata=about)
        ends = np.append(times[1:], opened.file.seconds)
        with pq.ParquetWriter(file, schema) as writer:
            for first in range(0, len(features), at_once):
                part = slice(first, first + at_once)
                values = pa.FixedSizeListArray.from_arrays(pa.array(features[part].reshape(-1), kind), size)
                begins = frames[part, 0]
                columns = [pa.array(begins), pa.array(times[begins]), pa.array(ends[frames[part, -1]]), values]
                writer.write_table(pa.table(columns, schema=schema))
