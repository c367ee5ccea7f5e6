"""Clips that a condition names: SQL's WHERE over the columns of a manifest, as a table on disk has them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.columns import MANIFEST, to_disk

RESERVED = ("end", "offset")  # words of SQL: as columns they need double quotes


def rows_where(rows: pa.Table, where: str) -> np.ndarray:
    """Rows of a manifest, as in memory -> which of them a condition is true of, bool.

    DuckDB evaluates it, so `path LIKE '%/cats/%'`, `extra->>'licence' = 'CC0'` and `duration BETWEEN 2 AND 10` are conditions.
    Raises ValueError for what is none.
    """
    import duckdb  # late: 0.1 s that no build needs

    table = to_disk(rows, MANIFEST).append_column("_row", pa.array(np.arange(len(rows))))
    try:
        with duckdb.connect(config={"enable_external_access": "false"}) as connection:
            # not a text of SQL: `true) OR (true` shall be no condition
            found = connection.from_arrow(table).filter(where).fetchnumpy()["_row"]
    except duckdb.Error as error:
        names = ", ".join(f'"{name}"' if name in RESERVED else name for name, *_ in MANIFEST)
        told = str(error).splitlines()[0]
        raise ValueError(f"--where {where!r}: {told}. It is SQL's WHERE over the columns {names}") from None
    chosen = np.zeros(len(rows), bool)
    chosen[found] = True
    return chosen


def read_keys(given: str, tables: Sequence[pa.Table]) -> pa.Array:
    """A file with a key a line, or keys with commas between -> keys. Raises ValueError if there is none, or one is of no clip
    of these rows of manifests."""
    file = Path(given)
    if not file.is_file() and ("/" in given or "." in given):  # which are in no key
        raise ValueError(f"--keys {given}: there is no such file")
    lines = file.read_text("utf-8-sig").splitlines() if file.is_file() else given.split(",")
    keys = pa.array(sorted({line.strip() for line in lines if line.strip()}), pa.string())
    known = pa.concat_tables([table.select(["key"]) for table in tables])["key"].combine_chunks()
    unknown = keys.filter(pc.invert(pc.is_in(keys, value_set=known)))
    if len(unknown) or not len(keys):
        told = "none is given"
        if len(unknown):
            told = f"{len(unknown):,} of the {len(keys):,} keys are of no clip; the first is {unknown[0].as_py()!r}"
        raise ValueError(f"--keys: {told}. A key is the column `key` of manifest.parquet")
    return keys


def chosen_rows(rows: pa.Table, where: str | None, keys: pa.Array | None) -> np.ndarray:
    """Which rows both name; all, if neither is given. Those of clips that were removed are never among them."""
    chosen = np.asarray(pc.greater(rows["size"], 0))
    if where is not None:
        chosen = chosen & rows_where(rows, where)
    if keys is not None:
        chosen = chosen & np.asarray(pc.is_in(rows["key"], value_set=keys))
    return chosen
