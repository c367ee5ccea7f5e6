"""Files of features: NAME.npy, as ActionFormer reads them and `tubecell extract-features` writes them, or .npz, .pt, .pth or
.parquet. (T, C): a row a step.

Of a .npy file only what is asked for is read; the others are read whole.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from train.watch.json_lines import read_lines

ENDS = (".npy", ".npz", ".pt", ".pth", ".parquet")
NAMES = ("features", "feats", "feat", "arr_0")  # of the array in an .npz or in a dictionary
DESCRIBED, VIDEOS = "features.json", "videos.jsonl"  # see train/features/folder.py


@dataclass(frozen=True, slots=True)
class FeatureFile:
    """One that was looked into."""

    path: Path
    steps: int
    """T."""
    bytes: int

    @staticmethod
    def of(path: Path, dim: int) -> "FeatureFile":
        """Raises ValueError for what are no features of this width."""
        features = opened(path, dim)
        if not len(features):
            raise ValueError("has no step")
        return FeatureFile(path, len(features), path.stat().st_size)

    def read(self, dim: int, first: int = 0, end: int | None = None, every: int = 1) -> np.ndarray:
        """Its steps first, first + every, ... before `end` -> float32 (T, C), a copy. Raises ValueError for what is no longer
        what it was, and for values that are not finite."""
        features = opened(self.path, dim)
        if len(features) != self.steps:
            raise ValueError(f"has {len(features)} steps, and had {self.steps} when the run began")
        taken = np.array(features[first:end:every], np.float32)
        if not np.isfinite(taken).all():
            step = first + every * int((~np.isfinite(taken)).any(1).argmax())
            raise ValueError(f"has values that are not finite, the first at step {step} of {self.steps}")
        return taken


def opened(path: Path, dim: int) -> Any:
    """An array (T, C), perhaps not yet read. Raises ValueError, without the path."""
    try:
        if path.suffix == ".npy":
            found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                found = chosen({name: archive[name] for name in archive.files})
        elif path.suffix == ".parquet":
            column = pq.read_table(path, columns=["features"])["features"].combine_chunks()
            found = column.values.to_numpy().reshape(len(column), -1)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
            found = chosen(found) if isinstance(found, Mapping) else found
            found = found.float().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)
    except ValueError as error:
        raise ValueError(f"cannot be read: {first_line(error)}") from None
    except Exception as error:  # a damaged file may make its reader raise anything
        raise ValueError(f"cannot be read: {first_line(error)}") from None
    if found.dtype.kind != "f":
        raise ValueError(f"holds {found.dtype}, not numbers with a fraction")
    while found.ndim > 2 and found.shape[0] == 1:
        found = found[0]
    if found.ndim == 2 and found.shape[1] != dim and found.shape[0] == dim:
        found = found.T
    if found.ndim != 2 or found.shape[1] != dim:
        what = "; it holds tokens: extract features without --tokens" if found.ndim == 3 else ""
        raise ValueError(f"has the shape {tuple(found.shape)}, not (steps, {dim}){what}")
    return found


def chosen(arrays: Mapping[str, Any]) -> Any:
    """The one array, or the one with a usual name. Raises ValueError."""
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    found = [name for name in NAMES if name in arrays]
    if not found:
        raise ValueError(f"it holds {', '.join(map(str, arrays)) or 'nothing'}, none of them called {' or '.join(NAMES)}")
    return arrays[found[0]]


def first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:160]


class FeatureFiles:
    """A folder of them."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError if there is none, and for two files of one name."""
        self.folder = folder
        self._paths: dict[str, Path] = {}
        if not folder.is_dir():
            raise ValueError(f"--features {folder} is no folder; give one that has a file for each video, such as NAME.npy")
        for place, _, files in os.walk(folder, followlinks=True):
            for file in sorted(files):
                path = Path(place, file)
                if path.suffix in ENDS:
                    name = path.relative_to(folder).with_suffix("").as_posix()
                    if other := self._paths.get(name):
                        raise ValueError(f"--features {folder} has {other.name} and {path.name}; leave one of the two there")
                    self._paths[name] = path
        if not self._paths:
            raise ValueError(f"--features {folder} has no file that ends in {', '.join(ENDS)}")
        self.described = self._described()
        self._videos = {line["video"]: line for line in read_lines(folder / VIDEOS)}

    def __len__(self) -> int:
        return len(self._paths)

    def find(self, name: str) -> Path | None:
        """The file of a video, or None."""
        return self._paths.get(name)

    def facts(self, name: str) -> Mapping[str, Any]:
        """What `extract-features` wrote down of a video: fps, seconds, windows; or why it has none."""
        return self._videos.get(name, {})

    def _described(self) -> Mapping[str, Any]:
        file = self.folder / DESCRIBED
        if not file.exists():
            return {}
        try:
            return dict(json.loads(file.read_text())["features"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is not one of extract-features ({error}); remove it, or extract anew") from None
