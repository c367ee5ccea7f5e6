"""AVA and AVA-Kinetics for detection: a window of 64 frames around every annotated second, with the people who are in it.

AVA's movies are found by id, in any of the forms in which they are had: whole (`ID.mkv`; seconds count from their beginning),
as their minutes 15 to 30 alone (`trimmed`), as folders `ID/` of images extracted from second 900 on at `rate`, or as folders
`ID/895.mp4, ID/896.mp4 ...` of files of a second each. AVA-Kinetics' are clips of Kinetics by their usual names,
`ID_000012_000022.mp4`: the annotated second counts from the beginning of the YouTube video, and each clip has one.

The window is that of SlowFast's and mmaction2's code and of VideoMAE's: 32 frames before the key frame and 31 after it, at 30 a
second, whatever the movie's rate (VideoMAE's pieces have 25). At a movie's edge it is shorter.
"""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from dataset_builders.media.pieces import NAME as PIECE
from dataset_builders.plan import Drop, SourcePlan, requests_table
from dataset_builders.sources.annotations import AnyPath, DroppedEntry, Files
from dataset_builders.sources.ava_files import (
    Annotated,
    Image,
    image_name,
    left_out,
    read_actions,
    read_annotations,
    read_excluded,
)
from dataset_builders.sources.boxes import BoxCheck
from dataset_builders.sources.kinetics_files import FILE_NAME
from dataset_builders.sources.listing import Listing, count_reasons, dropped_entries, existing_folder, list_videos, match
from pipeline.storage.key_frames import Action
from pipeline.storage.key_frames_writer import BOX_SCHEMA

BEGIN = 900.0  # second of the movie with which what is trimmed begins
RATE, PIECES_RATE = 30.0, 25.0  # frames per second
BEFORE, AFTER = 32, 32  # frames of a window before the key frame, and from it on
SAMPLING = "stride:4"
KINETICS_NAME = re.compile(FILE_NAME.encode())


@dataclass(frozen=True, slots=True)
class Movie:
    """A file, or a folder of images or pieces, and the second of the movie at which it begins and ends."""

    path: bytes
    kind: str
    begin: float = 0.0
    end: float | None = None  # where its name says it


def plan_ava(
    name: str,
    *,
    folder: AnyPath,
    actions: AnyPath,
    train: Files = None,
    val: Files = None,
    test: Files = None,
    excluded: Files = None,
    evaluated: AnyPath | None = None,
    trimmed: bool = False,
    rate: float | None = None,
    sampling: str = SAMPLING,
    splits: Collection[str] = ("train", "val", "test"),
) -> SourcePlan:
    """A request for each annotated second of the movies in `folder`, and its boxes. `rate`: frames per second of windows and of
    folders of images; by default 30, and 25 for movies in pieces.

    Raises ValueError for what cannot be read, and if no second is annotated.
    """
    root = existing_folder(folder)
    split_of = {"train": train, "val": val, "test": test}
    read = _Read.of(name, split_of, excluded, read_actions(actions, evaluated), splits)
    ids = [*dict.fromkeys(movie for annotated in read.annotated.values() for movie, _ in annotated.people)]
    movies, others = _find_movies(name, root, ids, trimmed)
    return read.planned({movie: [found] for movie, found in movies.items()}, others, rate, sampling)


def plan_kinetics(
    name: str,
    *,
    folder: AnyPath,
    actions: AnyPath,
    train: Files = None,
    val: Files = None,
    test: Files = None,
    excluded: Files = None,
    evaluated: AnyPath | None = None,
    rate: float | None = None,
    sampling: str = SAMPLING,
    splits: Collection[str] = ("train", "val", "test"),
) -> SourcePlan:
    """AVA-Kinetics' part of Kinetics, as `plan_ava`. The clip that has most of the window counts; one whose name does not say
    which seconds it holds cannot be used."""
    root = existing_folder(folder)
    split_of = {"train": train, "val": val, "test": test}
    read = _Read.of(name, split_of, excluded, read_actions(actions, evaluated), splits)
    ids = {movie for annotated in read.annotated.values() for movie, _ in annotated.people}
    found: dict[str, list[Movie]] = {}
    unlisted, unknown = 0, 0
    for path in list_videos(root).paths:
        named = KINETICS_NAME.search(path)
        if named is None or named["id"].decode() not in ids:
            unlisted += 1
        elif named["start"] is None:
            unknown += 1
        else:
            found.setdefault(named["id"].decode(), []).append(Movie(path, "video", float(named["start"]), float(named["end"])))
    # Kinetics has half a million files that AVA has nothing to say of: a number, no rows
    counts = {"files that no list names": unlisted, "files whose names say no seconds": unknown}
    plan = read.planned(found, [], rate, sampling)
    note = "AVA-Kinetics: no reference numbers exist for its part of Kinetics alone, and none of a public code; see the README"
    counted = {what: number for what, number in counts.items() if number}
    return replace(plan, counts={**plan.counts, **counted}, notes=(*plan.notes, note))


@dataclass(frozen=True, slots=True)
class _Read:
    """What the annotation files of a source say."""

    name: str
    annotated: Mapping[str, Annotated]  # by split
    actions: tuple[Action, ...]
    check: BoxCheck

    @classmethod
    def of(
        cls, name: str, files: Mapping[str, Files], excluded: Files, actions: tuple[Action, ...], splits: Collection[str]
    ) -> "_Read":
        check, known = BoxCheck(), {action.id: action.name for action in actions}
        read = {split: read_annotations(of, split, known, check) for split, of in files.items() if of and split in splits}
        for split, annotated in read.items():
            check.dropped += left_out(
                annotated, read_excluded(excluded, check if split == next(iter(read)) else BoxCheck()), split
            )
        if not any(annotated.people for annotated in read.values()):
            raise ValueError(f"source {name}: no annotated second in its lists; files such as ava_train_v2.2.csv are needed")
        held_out = {movie for split, annotated in read.items() if split != "train" for movie, _ in annotated.people}
        training = read.get("train", Annotated())
        for image in [image for image in training.people if image[0] in held_out]:
            detail = f"{training.where[image]} lists it for training, and its movie is one of validation or test"
            check.dropped.append(DroppedEntry(image_name(image), "train", Drop.LEAK, detail))
            del training.people[image]
        for image in [image for image, people in training.people.items() if not people]:
            detail = f"{training.where[image]}: nobody is annotated in it"
            check.dropped.append(DroppedEntry(image_name(image), "train", Drop.NOT_CHOSEN, detail))
            del training.people[image]
        return cls(name, read, actions, check)

    def planned(
        self, movies: Mapping[str, Sequence[Movie]], others: Sequence[pa.Table], rate: float | None, sampling: str
    ) -> SourcePlan:
        """Of the seconds whose movie is there."""
        dropped, rows, boxes = list(self.check.dropped), [], []
        for split, annotated in self.annotated.items():
            for image in _in_order(annotated.people):
                found, where = _file_of(image, movies.get(image[0], ())), annotated.where[image]
                if isinstance(found, Drop):
                    what = "no file of the movie holds that second" if found is Drop.OUTSIDE else "the movie is not there"
                    dropped.append(DroppedEntry(image_name(image), split, found, f"{where} lists it; {what}"))
                    continue
                rows.append(_window(image, split, found, rate))
                boxes += [
                    (image_name(image), *image, *person.box, sorted(person.actions), person.number)
                    for person in annotated.people[image]
                ]
        columns = {column: [row.get(column) for row in rows] for column in dict.fromkeys(key for row in rows for key in row)}
        requests = requests_table({"source": self.name, "root": self.name, "sampling": sampling, **columns}, len(rows))
        tables = [dropped_entries(self.name, dropped), *others]
        reasons = count_reasons(tables)
        counts = {f"annotated seconds, {split}": len(annotated.people) for split, annotated in self.annotated.items()}
        counts |= {"of these found": len(rows), "people annotated in these": len(boxes), **reasons}
        if self.check.cut:
            counts["boxes cut at the frame's edge"] = self.check.cut
        notes = [] if any(action.evaluated for action in self.actions) else ["no action of the list counts in the mean"]
        if not rows:
            notes.append(f"{self.name}: nothing that its lists name is there: {dropped[-1].id}, {dropped[-1].detail}")
        return SourcePlan(
            requests=requests,
            dropped=pa.concat_tables(tables),
            counts=counts,
            notes=tuple(notes),
            boxes=_boxes_table(boxes),
            actions=self.actions,
        )


def _in_order(images: Iterable[Image]) -> list[Image]:
    """Movie by movie as the files have them, by second: neighbours in the dataset are neighbours in the movie."""
    place: dict[str, int] = {}
    for movie, _ in images:
        place.setdefault(movie, len(place))
    return sorted(images, key=lambda image: (place[image[0]], image[1]))


def _file_of(image: Image, movies: Sequence[Movie]) -> Movie | Drop:
    """That which holds the second; of several the one that holds most of the window."""
    if not movies:
        return Drop.NO_FILE
    there = [movie for movie in movies if movie.begin <= image[1] and (movie.end is None or image[1] < movie.end)]
    if not there:
        return Drop.OUTSIDE
    half = BEFORE / RATE
    return max(there, key=lambda movie: min(image[1] - movie.begin, half) + min((movie.end or 1e9) - image[1], half))


def _window(image: Image, split: str, movie: Movie, rate: float | None) -> dict[str, Any]:
    """Columns of REQUEST_SCHEMA."""
    at, rate = image[1] - movie.begin, rate or (PIECES_RATE if movie.kind == "pieces" else RATE)
    row = {"path": movie.path, "kind": movie.kind, "split": split, "source_id": image_name(image), "rate": rate, "at": at}
    row["seconds"] = (BEFORE + AFTER) / rate
    if movie.kind == "frames":
        first = max(0, round(at * rate) - BEFORE)
        return row | {"first_frame": first, "num_images": round(at * rate) + AFTER - first}
    return row | {"start": max(0.0, at - BEFORE / rate), "end": at + AFTER / rate}


def _boxes_table(boxes: Sequence[tuple]) -> pa.Table:
    names = ("source_id", "movie", "second", "x1", "y1", "x2", "y2", "actions", "person")
    columns = dict(zip(names, zip(*boxes, strict=True) if boxes else [()] * len(names), strict=True))
    arrays = [
        pa.array(columns[name], BOX_SCHEMA.field(name).type if name in BOX_SCHEMA.names else pa.string()) for name in names
    ]
    table = pa.table(arrays, list(names))
    table = table.append_column("kind", pa.repeat("truth", len(table)))
    return table.append_column("score", pa.repeat(pa.scalar(1.0, pa.float32()), len(table)))


def _find_movies(name: str, root: bytes, ids: Sequence[str], trimmed: bool) -> tuple[dict[str, Movie], list[pa.Table]]:
    """Movies by id, in whichever form they are there; and rows for all other files."""
    names = {os.fsencode(movie) for movie in ids}
    listing = list_videos(root, lambda parent, directory: directory in names)
    pieces: dict[bytes, bytes] = {}
    rest = []
    for path in listing.paths[: listing.num_files]:
        parent, _, file = path.rpartition(b"/")
        if (owner := parent[parent.rfind(b"/") + 1 :]) in names and PIECE.fullmatch(file):
            pieces.setdefault(owner, parent)
        else:
            rest.append(path)
    whole = Listing([*rest, *listing.paths[listing.num_files :]], len(rest))
    places, others, _ = match(name, list(ids), whole)
    found: dict[str, Movie] = {}
    for movie, place in zip(ids, places.tolist(), strict=True):
        if os.fsencode(movie) in pieces:
            found[movie] = Movie(pieces[os.fsencode(movie)], "pieces")
        elif place >= 0:
            frames = place >= whole.num_files
            found[movie] = Movie(whole.paths[place], "frames" if frames else "video", BEGIN if trimmed or frames else 0.0)
    return found, others
