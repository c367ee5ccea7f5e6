"""AVA v2.2: feature films, of which the minutes 15 to 30 are annotated.

Annotation files: `ava_train_v2.2.csv` has a row for each box and action, `movie,second,x1,y1,x2,y2,action,person`, where the
movie is a YouTube id; its distinct movies are the training set: 235 of the 299 whose files
`ava_file_names_trainval_v2.1.txt` names with their extensions (`_-Z6wFjXtGQ.mkv`; the other 64 are for validation). A list
with one id a line, as `ava_test_v2.2.txt`, is read as well.

The paper cuts "the 15-minute movie clips from the AVA training set by 300 frames, resulting in 21k video clips" (appendix
C.1). The dataset's own tools and the papers after it take frames at 30 a second whatever the film's rate, so 900 s are 27,000
frames, 90 clips a movie and 21,150 of 235.
"""

from collections.abc import Callable
from dataclasses import replace

from dataset_builders.plan import SourcePlan
from dataset_builders.sources.annotations import (
    AnyPath,
    DroppedEntry,
    Entry,
    Files,
    as_files,
    is_text,
    malformed,
    shown,
)
from dataset_builders.sources.boxes import numbers
from dataset_builders.sources.listing import existing_folder, plan_entries
from dataset_builders.sources.rows import read_rows

BEGIN, END = 900.0, 1800.0  # seconds of the film
RATE = 30.0
CLIP_FRAMES = 300
CLIPS = int((END - BEGIN) * RATE) // CLIP_FRAMES  # of one movie
SAMPLING = "stride:4"


def plan(
    name: str,
    *,
    folder: AnyPath,
    train: Files,
    file_names: AnyPath | None = None,
    trimmed: bool = False,
    sampling: str = SAMPLING,
) -> SourcePlan:
    """A request for each training movie in `folder`: its minutes 15 to 30 at 30 frames per second, in clips of 300 frames.

    Movies are found by id, with any extension; a folder `ID/` of images counts as a movie whose 15 minutes were extracted at
    30 frames per second. `file_names` tells which other files are known: those of validation movies. `trimmed`: the files
    hold nothing but the 15 minutes (the usual `videos_15min`), and are read from their beginning.

    Raises ValueError if a file or the folder is missing, or `train` has no movie in it.
    """
    root = existing_folder(folder)
    entries, bad = _read_movies(train, "train", _annotated, "neither an id nor a row 'ID,SECOND,...'")
    if not entries:
        files = ", ".join(map(shown, as_files(train)))
        raise ValueError(
            f"source {name}: no movie in {files}; the file ava_train_v2.2.csv with rows like 'ID,0902,...' is needed"
        )
    others, more = _read_movies(file_names, "val", lambda cells: cells[0].rpartition(".")[0], "no name of a file")
    training = {entry.id for entry in entries}
    begin = 0.0 if trimmed else BEGIN
    planned = plan_entries(
        name,
        root,
        [*entries, *(entry for entry in others if entry.id not in training)],
        [*bad, *more],
        splits=("train",),
        columns={"rate": RATE, "clip_frames": CLIP_FRAMES, "seconds": END - BEGIN, "sampling": sampling},
        by_kind={"start": (None, begin), "end": (None, begin + END - BEGIN)},
    )
    return replace(planned, counts={**planned.counts, "clips at most": CLIPS * len(planned.requests)})


def _read_movies(
    files: Files, split: str, movie_of: Callable[[list[str]], str], wanted: str
) -> tuple[list[Entry], list[DroppedEntry]]:
    """The distinct movies of files, in the order in which they appear, and the lines in which `movie_of` finds none."""
    entries: dict[str, Entry] = {}
    bad = []
    for file in as_files(files):
        for number, line, cells in read_rows(file):
            movie = movie_of(cells)
            if movie in entries:  # 837,000 rows name 235 movies
                continue
            if is_text(movie) and "/" not in movie:
                entries[movie] = Entry(movie, split, None, shown(file), number)
            else:
                bad.append(malformed(file, number, "train", f"{line!r} is {wanted}"))
    return list(entries.values()), bad


def _annotated(cells: list[str]) -> str:
    """The movie of an annotation, empty if it is none. An id may begin with "-" or "_"."""
    return cells[0] if len(cells) == 1 or numbers(cells[1:2]) else ""
