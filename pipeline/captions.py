"""Sentences about clips: a field of a manifest's `extra`, a list of them or one. (Labels are what classes are made of.)"""

import json
from collections.abc import Sequence

import numpy as np

from pipeline.storage.manifest import Manifest

FIELDS = ("captions", "caption", "name")  # the builders' own, and WebVid's


class Captions:
    """Of a dataset. What `extra` says stays in memory, as text, and is read row by row."""

    def __init__(self, manifest: Manifest, fields: Sequence[str] = FIELDS) -> None:
        """`fields` are looked for in this order; the first that a clip has counts. Raises ValueError without any."""
        import pyarrow.parquet as pq

        if not fields:
            raise ValueError("captions: at least one field of `extra` is needed")
        file = manifest.root / "manifest.parquet"
        self._fields, self._extra = tuple(fields), None
        if "extra" in pq.read_schema(file).names:  # format 2 has none
            self._extra = pq.read_table(file, columns=["extra"])["extra"].slice(0, len(manifest))

    def of(self, row: int) -> list[str]:
        """Of a row of the manifest, each once, in their order; empty without."""
        text = None if self._extra is None else self._extra[row].as_py()
        said = json.loads(text) if text else {}
        for name in self._fields:
            value = said.get(name) if isinstance(said, dict) else None
            listed = value if isinstance(value, list) else [value]
            if found := [one.strip() for one in listed if isinstance(one, str) and one.strip()]:
                return list(dict.fromkeys(found))
        return []

    def counts(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) -> int64 (n,), how many each has."""
        return np.array([len(self.of(row)) for row in rows.tolist()], np.int64)
