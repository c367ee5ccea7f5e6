"""What a finished dataset holds, counted in one pass over its tables: memory does not grow with the number of clips."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

COLUMNS = ["source", "root", "path", "split", "label", "size", "fps", "width", "height", "codec", "duration"]
TENTHS = 36_001  # durations are counted in tenths of a second, those over an hour together: 288 kB
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
    rejects: dict[str, Example] = field(default_factory=dict)  # reason -> the first
    drops: dict[str, Example] = field(default_factory=dict)

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
    counts = DatasetCounts()
    files = _FileRuns(counts)
    for batch in pq.ParquetFile(dataset / "manifest.parquet").iter_batches(1 << 16, columns=COLUMNS):
        if len(batch):
            files.add(batch)
            _add_clips(counts, batch)
    files.finish()
    for batch in _batches(dataset / "rejects.parquet"):
        _add_reasons(batch, counts.rejects, counts, "rejected")
    for batch in _batches(dataset / "dropped.parquet"):
        _add_reasons(batch, counts.drops, counts, "dropped")
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
    splits = {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["split"]).to_pylist()}
    lines = []
    for of in classes(count_labels(rows), splits):
        without = f", and {of.unlabelled:,} clips without a class" if of.unlabelled else ""
        each = f"with {of.least:,} to {of.most:,} clips each, median {of.median:,.10g}"
        lines.append(f"{of.split}: {of.classes:,} {each}{without}")
    return lines


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    if file.exists():
        yield from pq.ParquetFile(file).iter_batches(1 << 16, columns=["source", "path", "reason", "detail"])


def _source(counts: DatasetCounts, name: str | None) -> SourceCounts:
    return counts.sources.setdefault(name or "", SourceCounts())


def _add_clips(counts: DatasetCounts, batch: pa.RecordBatch) -> None:
    names, codes = _codes(batch["source"])
    number, train = len(names), _array(pc.equal(batch["split"], "train"))
    size, duration = _array(batch["size"]), _array(batch["duration"])
    sums = zip(
        names,
        np.bincount(codes, minlength=number).tolist(),
        np.bincount(codes[train], minlength=number).tolist(),
        np.bincount(codes, duration, number).tolist(),
        np.bincount(codes, size, number).tolist(),  # in float64: exact up to 8 PiB
        strict=True,
    )
    for name, clips, in_train, seconds, size_sum in sums:
        source = _source(counts, name)
        source.clips += clips
        source.train_clips += in_train
        source.seconds += seconds
        source.bytes += int(size_sum)
    counts.labels += count_labels(pa.Table.from_batches([batch]))
    for column, counter in (("split", counts.splits), ("codec", counts.codecs)):
        counter.update({entry["values"]: entry["counts"] for entry in pc.value_counts(batch[column]).to_pylist()})
    sizes, often = np.unique(_array(batch["width"]).astype(np.int64) << 32 | _array(batch["height"]), return_counts=True)
    counts.resolutions.update(
        {(pair >> 32, pair & 0xFFFFFFFF): n for pair, n in zip(sizes.tolist(), often.tolist(), strict=True)}
    )
    rates, often = np.unique(np.round(_array(batch["fps"]), 2), return_counts=True)
    counts.rates.update(dict(zip(rates.tolist(), often.tolist(), strict=True)))
    counts.durations += np.bincount(np.clip(duration * 10, 0, TENTHS - 1).astype(np.int64), minlength=TENTHS)
    places = (np.log2(np.maximum(size, 1)) * OCTAVE).astype(np.int64)
    counts.sizes += np.bincount(np.minimum(places, len(counts.sizes) - 1), minlength=len(counts.sizes))


class _FileRuns:
    """Counts files: the clips of one lie side by side, so a file begins wherever source, root or path change."""

    def __init__(self, counts: DatasetCounts) -> None:
        self._counts = counts
        self._last: pa.RecordBatch | None = None  # the row before
        self._clips = 0  # of the file at the end of what was read

    def add(self, batch: pa.RecordBatch) -> None:
        columns = batch.select(["source", "root", "path"])
        before = pa.concat_batches(
            [self._last if self._last is not None else columns.slice(0, 1), columns.slice(0, len(batch) - 1)]
        )
        changes = np.zeros(len(batch), bool)
        for name in columns.schema.names:
            now, then = pc.fill_null(columns[name].cast(pa.binary()), b""), pc.fill_null(before[name].cast(pa.binary()), b"")
            changes |= _array(pc.not_equal(now, then))
        changes[0] |= self._last is None
        begins = np.flatnonzero(changes)
        names, codes = _codes(batch["source"])
        if len(begins):
            self._clips += int(begins[0])
            self._close()
            lengths = np.diff([*begins, len(batch)])
            whole = lengths[:-1]
            for code, name in enumerate(names):
                mine = codes[begins] == code
                source, several = _source(self._counts, name), whole[mine[:-1] & (whole > 1)]
                source.files += int(mine.sum())
                source.files_cut += len(several)
                source.clips_of_cut += int(several.sum())
            self._clips = int(lengths[-1])
        else:
            self._clips += len(batch)
        self._last = columns.slice(len(batch) - 1)

    def finish(self) -> None:
        self._close()

    def _close(self) -> None:
        """The file that was open is complete."""
        if self._clips > 1 and self._last is not None:
            source = _source(self._counts, self._last["source"][0].as_py())
            source.files_cut += 1
            source.clips_of_cut += self._clips
        self._clips = 0


def _add_reasons(batch: pa.RecordBatch, examples: dict[str, Example], counts: DatasetCounts, what: str) -> None:
    table = pa.table([batch["source"], batch["reason"]], names=["source", "reason"])
    for row in table.group_by(["source", "reason"], use_threads=False).aggregate([([], "count_all")]).to_pylist():
        reason = row["reason"] or ""
        getattr(_source(counts, row["source"]), what)[reason] += row["count_all"]
        if reason not in examples:
            first = batch.slice(pc.index(batch["reason"], row["reason"]).as_py(), 1).to_pylist()[0]
            examples[reason] = Example(first["source"] or "", first["path"], first["detail"] or "")


def _codes(column: pa.Array) -> tuple[list[str], np.ndarray]:
    """Strings -> (different ones, which of them each row has)."""
    encoded = column.dictionary_encode()
    return encoded.dictionary.to_pylist(), _array(encoded.indices)


def _array(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def quantile(counts: np.ndarray, share: float) -> int:
    """The first bin at which `share` of what was counted lies in it or before it."""
    return int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
