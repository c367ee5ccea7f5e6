"""A table of what was found out clip by clip: FOLDER/NAME.parquet, and until it is whole FOLDER/parts/part-ROW.parquet, each
named by its first row of the manifest and written whole. A pass that was killed goes on with the clips that no part has."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.files import write_whole

PARTS = "parts"
ASKED = b"evaluation"  # key of the schema's metadata


class Parts:
    """Those of a folder, which belong to one question: of these weights, clips and views."""

    def __init__(self, folder: Path, name: str, asked: Mapping[str, Any], what: str) -> None:
        """`name` is the file's, `asked` are plain values that say which question it is, `what` is found out ("predictions")."""
        self.folder, self._file, self._asked, self._what = folder, folder / name, dict(asked), what

    def rows(self) -> np.ndarray:
        """Rows of the manifest that are there, int64 (n,), ascending. Raises ValueError if they belong to another question."""
        found = [self._read(file, ["row"])["row"].to_numpy() for file in self._files()]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def add(self, table: pa.Table) -> None:
        """A part: clips that no other has, by their column `row`. Raises OSError."""
        table = table.replace_schema_metadata({ASKED: json.dumps(self._asked).encode()})
        (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
        first = int(table["row"][0].as_py())
        write_whole(self.folder / PARTS / f"part-{first:09d}.parquet", lambda file: pq.write_table(table, file))

    def whole(self) -> pa.Table | None:
        """All of them, by row, in one file, and no parts any more; None if there are none. One rank calls it when all are
        done."""
        files = self._files()
        if not files:
            return None
        table = pa.concat_tables([self._read(file) for file in files])
        _, first = np.unique(table["row"].to_numpy(), return_index=True)  # killed between the next two lines, rows are twice
        table = table.take(pa.array(first)).combine_chunks()
        if files != [self._file]:
            write_whole(self._file, lambda file: pq.write_table(table, file, compression="zstd"))
        for file in files:
            if file != self._file:
                file.unlink()
        if (self.folder / PARTS).exists() and not [*(self.folder / PARTS).iterdir()]:
            (self.folder / PARTS).rmdir()
        return table

    def _files(self) -> list[Path]:
        return ([self._file] if self._file.exists() else []) + sorted((self.folder / PARTS).glob("part-*.parquet"))

    def _read(self, file: Path, columns: list[str] | None = None) -> pa.Table:
        try:
            table = pq.read_table(file, columns=columns)
            asked = json.loads((table.schema.metadata or {})[ASKED])
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise ValueError(f"{file} has no {self._what} of ours ({error}); give another --out") from error
        differ = [name for name in {**asked, **self._asked} if asked.get(name) != self._asked.get(name)]
        if differ:
            told = ", ".join(f"{name} {asked.get(name)} instead of {self._asked.get(name)}" for name in differ)
            raise ValueError(f"{self.folder} has {self._what} of another evaluation ({told}); give another --out, or remove it")
        return table


def lists(values: np.ndarray) -> pa.Array:
    """(n, k) -> n lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
