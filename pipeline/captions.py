"""Sentences about clips: a field of a manifest's `extra`, a list of them or one. (Labels are what classes are made of.)

They are read once from the JSON of `extra` into a file beside the dataset, in its cache, which all processes of a node map: no
later start parses a row, and what is held does not grow with their number, but for a count each.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.storage.manifest import Manifest
from pipeline.storage.manifest_cache import ROWS, write_batches

if TYPE_CHECKING:
    import pyarrow as pa

FIELDS = ("captions", "caption", "name")  # the builders' own, and WebVid's
EXTRA, LISTS = "extra", "captions"


class Captions:
    """Of a dataset."""

    def __init__(self, manifest: Manifest, fields: Sequence[str] = FIELDS) -> None:
        """`fields` are looked for in this order; the first that a clip has counts. Raises ValueError without any, and for a
        manifest whose `extra` is no JSON, with the row."""
        import pyarrow as pa

        if not fields:
            raise ValueError("captions: at least one field of `extra` is needed")
        of_fields = hashlib.blake2b(json.dumps(list(fields)).encode(), digest_size=8).hexdigest()
        file = manifest.cached(
            f"captions-{of_fields}.arrow", partial(_write, manifest.root / "manifest.parquet", tuple(fields))
        )
        reader = pa.ipc.open_file(pa.memory_map(str(file)))
        self._batches = [reader.get_batch(i).column(LISTS) for i in range(reader.num_record_batches)]
        numbers = [np.diff(lists.offsets.to_numpy()) for lists in self._batches]
        self._first = np.cumsum([0, *map(len, numbers)])  # of each batch
        self._counts = np.concatenate([np.empty(0, np.int64), *numbers])[: len(manifest)]

    def of(self, row: int) -> list[str]:
        """Of a row of the manifest, each once, in their order; empty without."""
        batch = int(np.searchsorted(self._first, row, "right")) - 1
        found: list[str] = self._batches[batch][row - int(self._first[batch])].as_py()
        return found

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) -> int64 (n,), how many each has."""
        return self._counts[rows]


def _write(manifest: Path, fields: Sequence[str], file: Path) -> None:
    """Arrow with a list of captions for every row of the manifest's file, whatever its versions."""
    import pyarrow as pa

    texts = pa.large_list(pa.large_string())
    write_batches(pa.schema([(LISTS, texts)]), _lists(manifest, fields, texts), file)


def _lists(manifest: Path, fields: Sequence[str], kind: "pa.DataType") -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(manifest) as parquet:
        there = EXTRA in parquet.schema_arrow.names  # format 2 has none
        row = 0
        for batch in parquet.iter_batches(ROWS, columns=[EXTRA if there else "key"]):
            extras = batch.column(0).to_pylist() if there else [None] * len(batch)
            found = [_captions(extra, fields, manifest, number) for number, extra in enumerate(extras, row)]
            yield pa.record_batch({LISTS: pa.array(found, kind)})
            row += len(batch)


def _captions(extra: str | None, fields: Sequence[str], manifest: Path, row: int) -> list[str]:
    if not extra:
        return []
    try:
        said: Any = json.loads(extra)
    except ValueError as error:
        raise ValueError(f"{manifest}: `extra` of row {row} is no JSON ({error}): {extra[:80]!r}") from None
    for name in fields if isinstance(said, dict) else ():
        value = said.get(name)
        if isinstance(value, str):
            value = [value]
        if isinstance(value, list) and (found := [text for one in value if isinstance(one, str) and (text := _plain(one))]):
            return list(dict.fromkeys(found))
    return []


def _plain(text: str) -> str:
    """Without space around it; half of a surrogate pair, which JSON may have and UTF-8 cannot, is a replacement character."""
    text = text.strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
