"""Clips that a condition names: SQL's WHERE over the columns of a manifest, as a table on disk has them."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.columns import MANIFEST, to_disk


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
        names = ", ".join(column.name for column in MANIFEST)
        told = str(error).splitlines()[0]
        raise ValueError(f"--where {where!r}: {told}. It is SQL's WHERE over the columns {names}") from None
    chosen = np.zeros(len(rows), bool)
    chosen[found] = True
    return chosen


def rows_with_keys(rows: pa.Table, keys: Collection[str]) -> np.ndarray:
    """Likewise which have one of these keys. Raises ValueError if one is of no clip."""
    wanted = pa.array(sorted(keys), pa.string())
    unknown = wanted.filter(pc.invert(pc.is_in(wanted, value_set=rows["key"].combine_chunks())))
    if len(unknown):
        told = f"{len(unknown):,} of the {len(wanted):,} keys are of no clip; the first is {unknown[0].as_py()!r}"
        raise ValueError(f"--keys: {told}. A key is the column `key` of manifest.parquet")
    return np.asarray(pc.is_in(rows["key"], value_set=wanted))


def read_keys(given: str) -> list[str]:
    """A file with a key a line, or keys with commas between -> keys. Raises ValueError if there is none."""
    file = Path(given)
    lines = file.read_text("utf-8").splitlines() if file.is_file() else given.split(",")
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ValueError(f"--keys {given}: it holds no key")
    return keys


def chosen_rows(rows: pa.Table, where: str | None, keys: str | None) -> np.ndarray:
    """Which rows both name; all, if neither is given. Those of clips that were removed are never among them."""
    chosen = np.asarray(pc.greater(rows["size"], 0))
    if where is not None:
        chosen = chosen & rows_where(rows, where)
    if keys is not None:
        chosen = chosen & rows_with_keys(rows, read_keys(keys))
    return chosen
