"""Key frames of a dataset: the annotated frame of each clip, and who is where in it and does what.

    DATASET/
      key_frames.parquet   a row per clip: its movie, the second of it, which of the clip's frames that is, and what of the
                           movie's frame the clip shows
      boxes.parquet        a row per box, of people as annotated ("truth") or as a detector found them ("detection")
      actions.json         the classes: [{"id": 12, "name": "stand", "evaluated": true}, ...]

    frames = KeyFrames(Manifest("DATASET"))
    places, clips = frames.of_clips(batch.rows.numpy(), "truth")  # all boxes of a batch, and whose each is
    frames.box[places], frames.labels(places)                     # (n, 4) fractions, bool (n, C)

Boxes are (x1, y1, x2, y2) as fractions of the *movie's* frame, as in the official files. The builder cuts up to 15 pixels off
the scaled picture, so a clip shows a little less: `place` says what, and `in_clip` gives the boxes there.

Columns are mapped from Arrow files that are made on first use, by row of the manifest: about 60 bytes a box and 48 a clip,
shared by the processes of a node, of which only the pages that are read are in memory. Only who makes the files, once, holds
the tables whole. `key_frames_writer` writes the tables.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from pipeline.storage import files
from pipeline.storage.manifest import Manifest, cached_file
from pipeline.storage.manifest_cache import write_arrow

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["truth", "detection"]
KINDS: tuple[Kind, ...] = ("truth", "detection")
KEY_FRAMES, BOXES, ACTIONS = "key_frames.parquet", "boxes.parquet", "actions.json"
NONE = -1  # the key frame of a clip that has none, the person of a box without a number
FORM = 1  # of the mapped files


@dataclass(frozen=True, slots=True)
class Action:
    """A class. `evaluated`: it counts in the benchmark's mean, as 60 of AVA's 80 do."""

    id: int  # the official one
    name: str
    evaluated: bool = True


class KeyFrames:
    """The key frames of the N clips of a manifest, and their M boxes, those of a clip adjacent.

    By row: `movie` int32 (N,), place in the list `movies`, -1 without one; `second` float64 (N,), of the movie; `frame` int32
    (N,), index of the key frame in the clip, -1 for a clip without one; `place` float64 (N, 4), what the clip shows, a box in
    the movie's frame.

    By box: `row` int64 (M,) of the manifest, ascending; `is_truth` bool (M,); `box` float64 (M, 4), fractions of the movie's
    frame; `score` float32 (M,), the detector's, 1 for truth; `person` int32 (M,), -1 without a number. Of a clip, truth comes
    first, then detections by falling score.
    """

    def __init__(self, manifest: Manifest) -> None:
        """Raises ValueError if the dataset has no key frames, or their tables cannot be read."""
        self.manifest, tables = manifest, {name: local_table(manifest, name) for name in (KEY_FRAMES, BOXES, ACTIONS)}
        try:
            read = {name: file.read_bytes() for name, file in tables.items()}
        except OSError as error:
            raise ValueError(
                f"{manifest.place} has no key frames ({error.strerror}: {Path(str(error.filename)).name}); build them with "
                "`tubecell build-detection`"
            ) from None
        digest = hashlib.blake2b(f"{FORM} {manifest.fingerprint}".encode(), digest_size=16)
        for data in read.values():
            digest.update(hashlib.blake2b(data).digest())
        self.digest = digest.hexdigest()
        """Of all that is here, and of the clips: equal ones mean equal samples."""
        with _whole(manifest, ACTIONS):
            self.actions = [Action(**action) for action in json.loads(read[ACTIONS])]
        """In the order of their ids: C of them, the columns of `labels`."""
        root = manifest.root
        with _whole(manifest, KEY_FRAMES):
            clips = _mapped(cached_file(root, f"key-frames-{self.digest}.arrow", lambda to: _write_clips(manifest, tables, to)))
        with _whole(manifest, BOXES):
            boxes = _mapped(cached_file(root, f"boxes-{self.digest}.arrow", lambda to: _write_boxes(manifest, tables, to)))
        self.movies: list[str] = clips.column("movie").dictionary.to_pylist()
        self.movie = _numbers(clips.column("movie").indices)
        self.second, self.frame = _numbers(clips.column("second")), _numbers(clips.column("frame"))
        self.place = _numbers(clips.column("box").flatten()).reshape(-1, 4)
        self.row, self.is_truth = _numbers(boxes.column("row")), _numbers(boxes.column("is_truth")).view(np.bool_)
        self.box = _numbers(boxes.column("box").flatten()).reshape(-1, 4)
        self.score, self.person = _numbers(boxes.column("score")), _numbers(boxes.column("person"))
        doing = boxes.column("actions")
        self._actions_from, self._action = _numbers(doing.offsets), _numbers(doing.values)
        self._first = np.searchsorted(self.row, np.arange(len(manifest) + 1))

    @cached_property
    def annotated(self) -> str:
        """Digest of annotated boxes with their actions, and of the key frames: equal ones mean that the same can be learned,
        whatever detections there are."""
        places = np.flatnonzero(self.is_truth)
        digest = hashlib.blake2b("\n".join(self.names).encode(), digest_size=16)
        for of in (self.frame, self.place, self.row[places], self.box[places], np.packbits(self.labels(places))):
            digest.update(of.tobytes())
        return digest.hexdigest()

    def of_clips(
        self, rows: np.ndarray, kind: Kind, at_least: float = 0.0, most: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows (B,) of the manifest -> (places of their boxes among all M, int64 (n,); which of the B each is of, int64 (n,)).

        Of the kind that is asked for, with a score of `at_least`, and of a clip at most the first `most`: of detections the
        surest. Costs the boxes of these clips, whatever the dataset holds.
        """
        rows = np.asarray(rows, np.int64)
        counts = self._first[rows + 1] - self._first[rows]
        clips = np.repeat(np.arange(len(rows)), counts)
        places = np.arange(len(clips)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(self._first[rows], counts)
        wanted = (self.is_truth[places] == (kind == "truth")) & (self.score[places] >= at_least)
        places, clips = places[wanted], clips[wanted]
        if most is not None:
            among = np.arange(len(clips)) - np.searchsorted(clips, clips)
            places, clips = places[among < most], clips[among < most]
        return places, clips

    def first_of(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) of the manifest -> the places (n,) of their first boxes, if they have any."""
        return self._first[rows]

    def labels(self, places: np.ndarray) -> np.ndarray:
        """Places of boxes (n,) -> bool (n, C): which of `actions` each person is seen to do. Detections do nothing."""
        first, counts = self._actions_from[places], self._actions_from[places + 1] - self._actions_from[places]
        of = np.repeat(np.arange(len(places)), counts)
        at = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
        found = np.zeros((len(places), len(self.actions)), np.bool_)
        found[of, self._action[at]] = True
        return found

    def in_clip(self, places: np.ndarray) -> np.ndarray:
        """Places of boxes (n,) -> float64 (n, 4): the boxes as fractions of the clip's frame, of which they may stick out."""
        shown = self.place[self.row[places]]
        return (self.box[places] - shown[:, [0, 1, 0, 1]]) / np.tile(shown[:, 2:] - shown[:, :2], 2)

    def __len__(self) -> int:
        """M."""
        return len(self.row)

    @property
    def names(self) -> list[str]:
        """Of the classes."""
        return [action.name for action in self.actions]


def stamp(second: float) -> str:
    """As the official files write a second: "0902"; one that is no whole one digit for digit: "902.0333"."""
    return f"{int(second):04d}" if second == int(second) else repr(float(second))


@contextmanager
def _whole(manifest: Manifest, name: str) -> Iterator[None]:
    """Raises ValueError for a file that is damaged, or that a build which was killed has left beside older ones."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # pyarrow's and json's are ValueErrors, and KeyErrors
        why = str(error).partition("\n")[0]
        raise ValueError(
            f"{manifest.place}/{name} is damaged, or not of the same build as the files beside it ({why}); delete it and give "
            "the command of `tubecell build-detection` again, which encodes no clip anew"
        ) from None


def local_table(manifest: Manifest, name: str) -> Path:
    """The file of a dataset; of one behind a URL a copy, by the version that is there now."""
    home = files.origin(manifest.root)
    if home is None:
        return manifest.root / name
    url = f"{home}/{name}"
    if (state := files.stat(url)) is None:
        return manifest.root / name  # which is not there
    copy = manifest.root / f"{files.name_of(url, state)}-{name}"
    if not copy.exists():
        files.write_durably(copy, files.read(url))
    return copy


def _mapped(file: Path) -> "pa.RecordBatch":
    import pyarrow as pa

    reader = pa.ipc.open_file(pa.memory_map(str(file)))
    return reader.get_batch(0) if reader.num_record_batches else pa.RecordBatch.from_pylist([], schema=reader.schema)


def _numbers(array: "pa.Array") -> np.ndarray:
    return array.to_numpy(zero_copy_only=True)


def _write_clips(manifest: Manifest, tables: dict[str, Path], file: Path) -> None:
    """key_frames.parquet by row of the manifest."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(tables[KEY_FRAMES])
    order = pc.index_in(manifest.column("key").combine_chunks(), value_set=table["key"].combine_chunks())
    table = table.take(order)
    movies = table["movie"].combine_chunks().dictionary_encode()
    codes = movies.indices.fill_null(NONE).cast(pa.int32())
    sides = [
        table[side].combine_chunks().fill_null(whole).to_numpy() for side, whole in (("x1", 0), ("y1", 0), ("x2", 1), ("y2", 1))
    ]
    columns = {
        "movie": pa.DictionaryArray.from_arrays(codes, movies.dictionary, safe=False),
        "second": table["second"].combine_chunks().fill_null(0.0),
        "frame": table["frame"].combine_chunks().fill_null(NONE),
        "box": pa.FixedSizeListArray.from_arrays(np.stack(sides, axis=1).reshape(-1), 4),
    }
    write_arrow(pa.table(columns).combine_chunks(), file)


def _write_boxes(manifest: Manifest, tables: dict[str, Path], file: Path) -> None:
    """boxes.parquet by row of the manifest, without those of other clips."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(tables[BOXES])
    row = pc.index_in(table["key"], value_set=manifest.column("key").combine_chunks())
    table = table.set_column(0, "key", row.cast(pa.int64())).filter(row.is_valid())
    truth = pc.equal(table["kind"], "truth").combine_chunks().cast(pa.uint8()).to_numpy()
    order = np.lexsort((-table["score"].to_numpy(), 1 - truth, table["key"].to_numpy()))
    table, truth = table.take(order).combine_chunks(), truth[order]
    box = np.stack([table[side].to_numpy() for side in ("x1", "y1", "x2", "y2")], axis=1)
    doing = table["actions"].combine_chunks()
    ids = pa.array([action["id"] for action in json.loads(tables[ACTIONS].read_bytes())], pa.int32())
    known = pc.index_in(doing.values, value_set=ids).cast(pa.int32())
    if known.null_count:
        raise ValueError(f"{known.null_count:,} of its actions are not in {ACTIONS}")
    columns = {
        "row": table["key"].combine_chunks(),
        "is_truth": pa.array(truth),
        "box": pa.FixedSizeListArray.from_arrays(box.reshape(-1), 4),
        "score": table["score"].combine_chunks(),
        "person": table["person"].combine_chunks(),
        "actions": pa.ListArray.from_arrays(doing.offsets, known),
    }
    write_arrow(pa.table(columns).combine_chunks(), file)
