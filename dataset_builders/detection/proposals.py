"""Detected people, from the files in which they are handed around.

- CSV, as SlowFast's and AVA's own: `movie,second,x1,y1,x2,y2[,label],score`, a row a box (an empty or any label; the score is
  last). FAIR's `ava_detection_val_boxes_and_labels.csv` is one.
- JSON: `{"movie,0902": [[x1, y1, x2, y2, score], ...]}`, or COCO results as AIA's and AlphAction's
  `ava_val_det_person_bbox.json`: `[{"image_id": 7, "bbox": [x, y, w, h], "score": 0.9}]` in pixels, which needs the JSON that
  says which movie, second and size an image has (`ava_val_v2.2.json`: its `images`).
- Pickle: the same dictionary with arrays (n, 5), as mmaction2's `ava_dense_proposals_val.FAIR.recall_93.9.pkl`. It is read by
  an allow-list of what NumPy arrays are made of; nothing in it is executed.
"""

import importlib
import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataset_builders.sources.annotations import AnyPath, malformed, read_bytes, read_json, shown
from dataset_builders.sources.boxes import LATEST, BoxCheck, numbers
from dataset_builders.sources.rows import read_rows
from pipeline.storage.key_frames import stamp

HEADER = "movie,second,x1,y1,x2,y2,...,score"


@dataclass(frozen=True, slots=True)
class Detection:
    """A person that a detector found."""

    movie: str
    second: float
    box: tuple[float, float, float, float]  # fractions of the frame
    score: float


Found = tuple[str, float, Sequence[float], float, int | str]
"""Movie, second, sides, score, and where in the file: a line, or the name of an image."""


def read_proposals(files: Sequence[AnyPath], check: BoxCheck, images: Sequence[AnyPath] = ()) -> Iterator[Detection]:
    """The detections of files, one after the other. What is wrong with some is said in `check`. `images` are COCO files that
    name the images of others. Raises ValueError for a file that is none of those that are known."""
    known = _images([entry for file in images for entry in _listed_images(file)])
    for file in files:
        name = os.fsencode(file).lower()
        if name.endswith((b".pkl", b".pickle")):
            found = _of_mapping(read_pickle(file), file)
        elif name.endswith(b".json"):
            content = read_json(file)
            if isinstance(content, Mapping) and isinstance(content.get("images"), list):
                own, content = _images(content["images"]), content.get("annotations")
                found = _of_coco(content, file, known | own, check)
            else:
                found = _of_mapping(content, file) if isinstance(content, Mapping) else _of_coco(content, file, known, check)
        elif name.endswith((b".csv", b".txt")):
            found = _of_csv(file, check)
        else:
            raise ValueError(f"{shown(file)}: detections are read from .csv, .json and .pkl files")
        for movie, second, sides, score, where in found:
            image = f"{movie},{stamp(second)}" if 0 <= second < LATEST else None
            if image is None:
                check.dropped.append(malformed(file, where, "val", f"second {second:g} is none of a movie"))
            elif not 0 <= score <= 1:
                check.dropped.append(malformed(file, where, "val", f"score {score:g} is none: allowed are 0 to 1", image))
            elif box := check.taken((sides[0], sides[1], sides[2], sides[3]), file, where, "val", image):
                yield Detection(movie, second, box, score)


def fractions_of_xywh(boxes: np.ndarray, width: float, height: float) -> np.ndarray:
    """COCO's boxes (n, 4) of x, y, width, height in pixels of a picture -> fractions x1, y1, x2, y2 of it, float64 (n, 4)."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1) / [width, height, width, height]


def image_key(text: object) -> tuple[str, float] | None:
    """ "-5KQ66BBWC4,0902" -> its movie and its second; None for anything else."""
    movie, comma, second = text.rpartition(",") if isinstance(text, str) else ("", "", "")
    found = numbers([second])
    return (movie, found[0]) if comma and movie and found and np.isfinite(found[0]) else None


def _of_csv(file: AnyPath, check: BoxCheck) -> Iterator[Found]:
    for line, text, (movie, *values) in read_rows(file):
        found = numbers([*values[:5], values[-1]]) if movie and len(values) in (6, 7, 8) else None
        if found is None:
            check.dropped.append(malformed(file, line, "val", f"{text!r} is no row {HEADER}"))
        else:
            yield movie, found[0], found[1:5], found[5], line


def _of_mapping(content: Any, file: AnyPath) -> Iterator[Found]:
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{shown(file)}: holds {type(content).__name__}; wanted is 'movie,0902' -> rows of x1, y1, x2, y2, score"
        )
    for name, rows in content.items():
        key = image_key(name)
        try:
            table = np.asarray(rows, np.float64)
        except (OverflowError, TypeError, ValueError):
            table = np.zeros((1, 0))
        if key is None or not (table.shape == (0,) or (table.ndim == 2 and table.shape[1] == 5)):
            raise ValueError(f"{shown(file)}: {str(name)[:80]!r} is no 'movie,0902' with rows of x1, y1, x2, y2, score")
        for number, row in enumerate(table.reshape(-1, 5).tolist()):
            yield *key, row[:4], row[4], f"{name}[{number}]"


def _of_coco(
    content: Any, file: AnyPath, images: Mapping[Any, tuple[str, float, float, float]], check: BoxCheck
) -> Iterator[Found]:
    if not isinstance(content, list):
        raise ValueError(f"{shown(file)}: is no list of detections, nor 'movie,0902' -> rows of x1, y1, x2, y2, score")
    for number, entry in enumerate(content):
        try:
            if entry.get("category_id", 1) != 1:
                continue  # something else than a person
            movie, second, width, height = images[entry["image_id"]]
            (sides,) = fractions_of_xywh(np.array(entry["bbox"], float), width, height).tolist()
            yield movie, second, sides, float(entry["score"]), number
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            if isinstance(entry, Mapping) and "image_id" in entry and not images:
                raise ValueError(
                    f"{shown(file)}: says image {entry['image_id']!r}, and not of which movie and second that is; give the "
                    "file that lists the images, too, such as ava_val_v2.2.json (--images)"
                ) from None
            check.dropped.append(malformed(file, number, "val", f"{str(entry)[:100]} is no person in an image that is listed"))


def _listed_images(file: AnyPath) -> list[Any]:
    content = read_json(file)
    if not isinstance(content, Mapping) or not isinstance(content.get("images"), list):
        raise ValueError(f"{shown(file)}: has no list 'images', as COCO's annotation files have")
    return content["images"]


def _images(entries: Sequence[Any]) -> dict[Any, tuple[str, float, float, float]]:
    """id -> movie, second, width, height; what lacks one of them is left out."""
    found = {}
    for entry in entries:
        try:
            sizes = float(entry["width"]), float(entry["height"])
            if min(sizes) > 0:
                found[entry["id"]] = (str(entry["movie"]), float(entry["timestamp"]), *sizes)
        except (KeyError, OverflowError, TypeError, ValueError):
            continue
    return found


def read_pickle(file: AnyPath) -> Any:
    """A pickle of dictionaries, lists, numbers and NumPy arrays. Raises ValueError for one of anything else: nothing but what
    makes these is looked up, so nothing else can be called."""
    try:
        return _Arrays(io.BytesIO(read_bytes(file)), encoding="latin1").load()
    except _ForbiddenError as error:
        raise ValueError(f"{shown(file)}: holds {error}, and is not read: only dictionaries and arrays are") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{shown(file)}: is no pickle of arrays: {type(error).__name__}: {error}") from None


class _ForbiddenError(Exception):
    pass


class _Arrays(pickle.Unpickler):
    """`find_class` is the only way in which a pickle gets hold of anything to call."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.replace("numpy._core", "numpy.core"), name) in _ALLOWED:
            return _ALLOWED[module.replace("numpy._core", "numpy.core"), name]
        raise _ForbiddenError(f"{module}.{name}")


def _encoded(text: str, encoding: str) -> bytes:
    """What Python 2 wrote of bytes: `_codecs.encode`, but for one encoding only."""
    if encoding != "latin1":
        raise _ForbiddenError(f"bytes as {encoding}")
    return text.encode("latin1")


def _nothing() -> bytes:
    """What protocol 2 writes of no bytes: `bytes()`; of a number it would be that many."""
    return b""


_MULTIARRAY, _NUMERIC = (importlib.import_module(f"numpy._core.{name}") for name in ("multiarray", "numeric"))
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _MULTIARRAY._reconstruct,
    ("numpy.core.multiarray", "scalar"): _MULTIARRAY.scalar,
    ("numpy.core.numeric", "_frombuffer"): _NUMERIC._frombuffer,
    ("__builtin__", "bytes"): _nothing,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encoded,
}
