"""What was said of each clip: OUT/predictions.parquet, and until it is whole OUT/parts/part-ROW.parquet, each named by its
first row of the manifest and written whole. A pass that was killed goes on with the clips that no part has.

| column | |
|---|---|
| row, key | of the clip in the manifest |
| label, prediction | names of classes; no label where the clip has none, or one that the weights lack |
| label_index, prediction_index | their places, -1 without a label |
| place | how many classes were found likelier than the label; -1 without |
| probability | of the label, float32 |
| top, top_probability | the first five classes and what they have, float32 |
| probabilities | of all classes, float16 |
| views | how many were averaged |
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.storage.files import write_whole
from train.accuracy.accuracy import TOP, Accuracy, places
from train.accuracy.scores import Merged

FILE, PARTS = "predictions.parquet", "parts"
ASKED = b"evaluation"  # key of the schema's metadata


class Predictions:
    """Those of a folder, which belong to one evaluation: of these weights, clips and views."""

    def __init__(self, folder: Path, asked: Mapping[str, Any], names: Sequence[str]) -> None:
        """`asked` are plain values that say which evaluation it is, `names` (C,) those of the classes."""
        self.folder, self._asked, self._names = folder, dict(asked), list(names)

    def rows(self) -> np.ndarray:
        """Rows of the manifest that were predicted, int64 (n,), ascending. Raises ValueError if they belong to another
        evaluation."""
        found = [self._read(file, ["row"])["row"].to_numpy() for file in self._files()]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def add(self, rows: np.ndarray, merged: Merged) -> None:
        """A part: clips that no other has, by their rows (n,). Raises OSError."""
        table = self._table(rows, merged)
        (self.folder / PARTS).mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / PARTS / f"part-{int(rows[0]):09d}.parquet", lambda file: pq.write_table(table, file))

    def whole(self) -> pa.Table:
        """All of them, by row, in one file, and no parts any more; one rank calls it when all are done."""
        files = self._files()
        if not files:
            return self._empty()
        table = pa.concat_tables([self._read(file) for file in files])
        _, first = np.unique(table["row"].to_numpy(), return_index=True)  # killed between the next two lines, rows are twice
        table = table.take(pa.array(first)).combine_chunks()
        write_whole(self.folder / FILE, lambda file: pq.write_table(table, file, compression="zstd"))
        for file in files:
            if file.name != FILE:
                file.unlink()
        if (self.folder / PARTS).exists() and not [*(self.folder / PARTS).iterdir()]:
            (self.folder / PARTS).rmdir()
        return table

    def accuracy(self, table: pa.Table) -> Accuracy:
        """Of the clips in the table."""
        labels, predictions, place = (table[name].to_numpy() for name in ("label_index", "prediction_index", "place"))
        return Accuracy.of(labels, predictions, place, len(self._names))

    def _files(self) -> list[Path]:
        whole = self.folder / FILE
        return ([whole] if whole.exists() else []) + sorted((self.folder / PARTS).glob("part-*.parquet"))

    def _read(self, file: Path, columns: list[str] | None = None) -> pa.Table:
        try:
            table = pq.read_table(file, columns=columns)
            asked = json.loads((table.schema.metadata or {})[ASKED])
        except (pa.ArrowInvalid, KeyError, ValueError) as error:
            raise ValueError(f"{file} is no part of an evaluation ({error}); give another --out") from error
        differ = [name for name in {**asked, **self._asked} if asked.get(name) != self._asked.get(name)]
        if differ:
            told = ", ".join(f"{name} {asked.get(name)} instead of {self._asked.get(name)}" for name in differ)
            raise ValueError(f"{self.folder} has predictions of another evaluation ({told}); give another --out, or remove it")
        return table

    def _table(self, rows: np.ndarray, merged: Merged) -> pa.Table:
        probabilities, labels, known = merged.probabilities, merged.labels, merged.labels >= 0
        top = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
        of_top = np.take_along_axis(probabilities, top, axis=1)
        place = places(torch.from_numpy(probabilities), torch.from_numpy(labels)).numpy()
        own = np.take_along_axis(probabilities, np.maximum(labels, 0)[:, None], axis=1)[:, 0]
        unknown = ~known
        columns = {
            "row": pa.array(rows, pa.int64()),
            "key": pa.array(merged.keys, pa.string()),
            "label": pa.array([self._names[label] if label >= 0 else None for label in labels.tolist()], pa.string()),
            "prediction": pa.array([self._names[index] for index in top[:, 0].tolist()], pa.string()),
            "label_index": pa.array(labels, pa.int32()),
            "prediction_index": pa.array(top[:, 0], pa.int32()),
            "place": pa.array(np.where(known, place, -1), pa.int32()),
            "probability": pa.array(own.astype(np.float32), pa.float32(), mask=unknown),
            "top": _lists(top.astype(np.int32)),
            "top_probability": _lists(of_top.astype(np.float32)),
            "probabilities": _lists(probabilities.astype(np.float16)),
            "views": pa.array(merged.views, pa.int32()),
        }
        return pa.table(columns).replace_schema_metadata({ASKED: json.dumps(self._asked).encode()})

    def _empty(self) -> pa.Table:
        none = np.empty((0, len(self._names)))
        return self._table(np.empty(0, np.int64), Merged([], np.empty(0, np.int64), none, np.empty(0, np.int64)))


def _lists(values: np.ndarray) -> pa.Array:
    """(n, k) -> n lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
