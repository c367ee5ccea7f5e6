"""What was said of each clip: OUT/predictions.parquet, and until it is whole its parts (`parts.py`).

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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from train.accuracy.accuracy import TOP, Accuracy, places
from train.accuracy.parts import Parts, lists
from train.accuracy.scores import Merged

FILE = "predictions.parquet"


class Predictions:
    """Those of a folder, which belong to one evaluation: of these weights, clips and views."""

    def __init__(self, folder: Path, asked: Mapping[str, Any], names: Sequence[str]) -> None:
        """`asked` are plain values that say which evaluation it is, `names` (C,) those of the classes."""
        self._parts, self._names = Parts(folder, FILE, asked, "predictions"), list(names)

    def rows(self) -> np.ndarray:
        """Rows of the manifest that were predicted, int64 (n,), ascending. Raises ValueError if they belong to another
        evaluation."""
        return self._parts.rows()

    def add(self, rows: np.ndarray, merged: Merged) -> None:
        """A part: clips that no other has, by their rows (n,). Raises OSError."""
        self._parts.add(self._table(rows, merged))

    def whole(self) -> pa.Table:
        """All of them, by row, in one file, and no parts any more; one rank calls it when all are done."""
        table = self._parts.whole()
        return self._empty() if table is None else table

    def accuracy(self, table: pa.Table) -> Accuracy:
        """Of the clips in the table."""
        labels, predictions, place = (table[name].to_numpy() for name in ("label_index", "prediction_index", "place"))
        return Accuracy.of(labels, predictions, place, len(self._names))

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
            "top": lists(top.astype(np.int32)),
            "top_probability": lists(of_top.astype(np.float32)),
            "probabilities": lists(probabilities.astype(np.float16)),
            "views": pa.array(merged.views, pa.int32()),
        }
        return pa.table(columns)

    def _empty(self) -> pa.Table:
        none = np.empty((0, len(self._names)))
        return self._table(np.empty(0, np.int64), Merged([], np.empty(0, np.int64), none, np.empty(0, np.int64)))
