"""What a finished dataset holds, counted in one pass over its tables: memory does not grow with the number of clips."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage.columns import iter_rows
from pipeline.storage.manifest import parse_sampling
from pipeline.storage.manifest_writer import SCHEMA

FILE = ["source", "root", "path"]
COLUMNS = [*FILE, "split", "label", "size", "num_frames", "fps", "width", "height", "codec", "duration", "sampling"]
TENTHS = 36_001  # durations are counted in tenths of a second, those over an hour together: 288 kB
VIEW = 16  # frames of the papers' views
FEW = 20  # rejects, or dropped entries, that a report shows one by one
OCTAVE = 4  # bins of sizes: a quarter of a doubling, from one byte to a tebibyte


@dataclass(slots=True)
class SourceCounts:
    """Of one source. A file that is cut into clips is one file."""

    files: int = 0
    clips: int = 0
    train_clips: int = 0
    files_cut: int = 0  # that gave more than one clip
    clips_of_cut: int = 0
    seconds: float = 0.0
    bytes: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # by reason
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Example:
    """One row of rejects.parquet or dropped.parquet."""

    source: str
    path: bytes | None
    detail: str


@dataclass(slots=True)
class DatasetCounts:
    """Of all of them; `sources` in the order of the manifest."""

    sources: dict[str, SourceCounts] = field(default_factory=dict)
    splits: Counter[str] = field(default_factory=Counter)
    labels: Counter[tuple[str, str]] = field(default_factory=Counter)  # clips by (split, class)
    codecs: Counter[str] = field(default_factory=Counter)
    resolutions: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height)
    rates: Counter[float] = field(default_factory=Counter)  # frames per second, to two digits
    durations: np.ndarray = field(default_factory=lambda: np.zeros(TENTHS, np.int64))  # by tenths of a second
    sizes: np.ndarray = field(default_factory=lambda: np.zeros(40 * OCTAVE, np.int64))  # by log2 of bytes, in quarters
    short: int = 0  # clips with fewer frames than a view of VIEW frames reaches over, at their own sampling
    removed: int = 0  # clips whose bytes were removed
    rejects: dict[str, list[Example]] = field(default_factory=dict)  # reason -> the first ones
    drops: dict[str, list[Example]] = field(default_factory=dict)

    @property
    def total(self) -> SourceCounts:
        """All sources together."""
        whole = SourceCounts()
        for source in self.sources.values():
            for name in ("files", "clips", "train_clips", "files_cut", "clips_of_cut", "seconds", "bytes"):
                setattr(whole, name, getattr(whole, name) + getattr(source, name))
            whole.rejected += source.rejected
            whole.dropped += source.dropped
        return whole


def count_dataset(dataset: Path) -> DatasetCounts:
    """Read manifest, rejects.parquet and, if there is one, dropped.parquet. 1.35 million clips: 1 s of a core, 210 MB."""
    counts, of_last_file = DatasetCounts(), SCHEMA.empty_table().select(FILE)
    for rows in iter_rows(dataset / "manifest.parquet", COLUMNS):
        _add_clips(counts, rows)
        of_last_file = _add_files(counts, pa.concat_tables([of_last_file, rows.select(FILE)]))
    _add_files(counts, of_last_file, last=True)
    _add_reasons(counts, dataset / "rejects.parquet", counts.rejects, "rejected")
    _add_reasons(counts, dataset / "dropped.parquet", counts.drops, "dropped")
    return counts


@dataclass(frozen=True, slots=True)
class Classes:
    """Of one split: how many classes there are, and clips of a class."""

    split: str
    classes: int
    least: int
    median: float
    most: int
    unlabelled: int  # clips without a class
    smallest: str  # the names of a class with the least clips and one with the most
    largest: str


def count_labels(rows: pa.Table) -> Counter[tuple[str, str]]:
    """Rows of a manifest -> clips by (split, class); those without a label are left out."""
    groups = rows.select(["split", "label"]).group_by(["split", "label"], use_threads=False).aggregate([([], "count_all")])
    return Counter({(row["split"], row["label"]): row["count_all"] for row in groups.to_pylist() if row["label"] is not None})


def classes(labels: Counter[tuple[str, str]], splits: Mapping[str, int]) -> list[Classes]:
    """For each split with classes, train first; `splits` has the clips of each."""
    found = []
    for split in sorted(splits, key=lambda split: (split != "train", split != "val", split)):
        sizes = {label: number for (of, label), number in labels.items() if of == split}
        if sizes:
            smallest, largest = (of(sizes, key=lambda label: (sizes[label], label)) for of in (min, max))
            least, most, unlabelled = sizes[smallest], sizes[largest], splits[split] - sum(sizes.values())
            found.append(Classes(split, len(sizes), least, median(sizes.values()), most, unlabelled, smallest, largest))
    return found


def class_lines(dataset: Path) -> list[str]:
    """For people: a line for each split that has classes."""
    rows = pq.read_table(dataset / "manifest.parquet", columns=["split", "label"])
    lines = []
    for of in classes(count_labels(rows), counted(rows["split"])):
        without = f", and {of.unlabelled:,} clips without a class" if of.unlabelled else ""
        each = f"with {of.least:,} to {of.most:,} clips each, median {of.median:,.10g}"
        lines.append(f"{of.split}: {of.classes:,} {each}{without}")
    return lines


def counted(column: pa.ChunkedArray | pa.Array) -> dict[str, int]:
    """A column's different values, in the order in which they come, and how often each is there."""
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(column).to_pylist()}


def _source(counts: DatasetCounts, name: str | None) -> SourceCounts:
    return counts.sources.setdefault(name or "", SourceCounts())


def _add(counts: DatasetCounts, sources: pa.ChunkedArray, **numbers: Any) -> None:
    """Numbers of a row each, by the names of their fields, to its source."""
    rows = pa.table({"source": sources, **numbers}).group_by("source", use_threads=False)
    for row in rows.aggregate([(name, "sum") for name in numbers]).to_pylist():
        source = _source(counts, row["source"])
        for name in numbers:
            setattr(source, name, getattr(source, name) + row[f"{name}_sum"])


def _add_clips(counts: DatasetCounts, rows: pa.Table) -> None:
    clips = {"clips": np.ones(len(rows), np.int64), "train_clips": pc.equal(rows["split"], "train")}
    _add(counts, rows["source"], **clips, seconds=rows["duration"], bytes=rows["size"])
    counts.labels += count_labels(rows)
    counts.splits.update(counted(rows["split"]))
    counts.short += int((_array(rows["num_frames"]) < _reach(rows)).sum())
    counts.removed += int((_array(rows["size"]) == 0).sum())
    counts.codecs.update(counted(rows["codec"]))
    size, duration = _array(rows["size"]), _array(rows["duration"])
    sizes, often = np.unique(_array(rows["width"]).astype(np.int64) << 32 | _array(rows["height"]), return_counts=True)
    counts.resolutions.update(
        {(pair >> 32, pair & 0xFFFFFFFF): n for pair, n in zip(sizes.tolist(), often.tolist(), strict=True)}
    )
    rates, often = np.unique(np.round(_array(rows["fps"]), 2), return_counts=True)
    counts.rates.update(dict(zip(rates.tolist(), often.tolist(), strict=True)))
    counts.durations += np.bincount(np.clip(duration * 10, 0, TENTHS - 1).astype(np.int64), minlength=TENTHS)
    places = (np.log2(np.maximum(size, 1)) * OCTAVE).astype(np.int64)
    counts.sizes += np.bincount(np.minimum(places, len(counts.sizes) - 1), minlength=len(counts.sizes))


def _reach(rows: pa.Table) -> np.ndarray:
    """Frames from the first to the last of a view, and one step more: what the sampler asks of a clip."""
    sampling = rows["sampling"].combine_chunks().dictionary_encode()
    steps = [parse_sampling(text) for text in sampling.dictionary.to_pylist()]
    codes = sampling.indices.to_numpy()
    stride, interval = (np.array([step[place] for step in steps], np.float64)[codes] for place in (0, 1))
    return VIEW * np.where(stride > 0, stride, interval * _array(rows["fps"]))


def _add_files(counts: DatasetCounts, rows: pa.Table, *, last: bool = False) -> pa.Table:
    """Counts files: the clips of one lie side by side, so a file begins wherever source, root or path change. Unless these rows
    are the `last`, their last file may go on: its rows are returned, to be counted with those that follow."""
    rows = rows.combine_chunks()
    borders = np.ones(len(rows) + 1, bool)
    borders[1:-1] = False
    for column in rows.columns:
        values = pc.fill_null(column.cast(pa.binary()), b"")
        borders[1:-1] |= _array(pc.not_equal(values[1:], values[:-1]))
    begins = np.flatnonzero(borders)
    clips = np.diff(begins if last else begins[:-1])
    sources, files, cut = rows["source"].take(begins[: len(clips)]), np.ones(len(clips), np.int64), clips > 1
    _add(counts, sources, files=files, files_cut=cut, clips_of_cut=clips * cut)
    return rows.slice(begins[len(clips)])


def _add_reasons(counts: DatasetCounts, file: Path, examples: dict[str, list[Example]], what: str) -> None:
    if not file.exists():
        return
    for batch in iter_rows(file, ["source", "path", "reason", "detail"]):
        groups = batch.group_by(["source", "reason"], use_threads=False)
        for row in groups.aggregate([([], "count_all")]).to_pylist():
            reason = row["reason"] or ""
            getattr(_source(counts, row["source"]), what)[reason] += row["count_all"]
            known = examples.setdefault(reason, [])
            if more := FEW - len(known):
                of_it = batch.filter(
                    pc.and_(pc.equal(batch["reason"], row["reason"]), pc.equal(batch["source"], row["source"]))
                )
                known += [
                    Example(row["source"] or "", one["path"], one["detail"] or "") for one in of_it.slice(0, more).to_pylist()
                ]


def _array(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def quantile(counts: np.ndarray, share: float) -> int:
    """The first bin at which `share` of what was counted lies in it or before it."""
    return int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
