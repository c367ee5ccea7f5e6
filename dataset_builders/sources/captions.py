"""Videos with sentences about them: MSR-VTT and MSVD. A clip's captions stand in its `extra`, see `columns.CAPTIONS`: there a
clip may have a class, too, and no stage of classes takes a caption for one.

- MSR-VTT, `train_val_videodatainfo.json` and `test_videodatainfo.json`, or one file of both: `{"videos": [{"video_id":
  "video0", "category": 9, "split": "train", ...}, ...], "sentences": [{"video_id": "video0", "caption": "a car is shown"},
  ...]}`, where the splits are train, validate and test. Lists may divide the videos otherwise, such as `MSRVTT_train.9k.csv`
  and `MSRVTT_JSFUSION_test.csv` of the split "1k-A": with a column `video_id`, and where they have `sentence`, it alone counts.
- MSVD, `AllVideoDescriptions.txt`: `ID a squirrel is eating a peanut`, lines that begin with # left out; or the corpus as CSV,
  with VideoID, Start, End, Language and Description, of which the English ones count and the id is VIDEOID_START_END. Lists
  `train_list.txt`, `val_list.txt` and `test_list.txt` have an id a line.

Videos are found by their id, wherever they lie below the folder.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any

from dataset_builders.plan import Drop, SourcePlan
from dataset_builders.sources.annotations import (
    SPLITS,
    AnyPath,
    DroppedEntry,
    Entry,
    Files,
    as_files,
    is_text,
    malformed,
    read_json,
    read_lines,
    settle,
    shown,
)
from dataset_builders.sources.folder import SAMPLING
from dataset_builders.sources.listing import existing_folder, plan_entries, without_extension
from dataset_builders.sources.rows import read_rows
from pipeline.storage.columns import CAPTIONS, as_extra

MSRVTT_SPLITS = {"train": "train", "validate": "val", "val": "val", "test": "test"}


@dataclass(slots=True)
class _Video:
    """What the annotations say of a video, and where."""

    file: str
    line: int
    split: str | None = None
    captions: list[str] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)


def plan_msrvtt(
    name: str,
    *,
    folder: AnyPath,
    annotations: Files,
    train: Files = None,
    val: Files = None,
    test: Files = None,
    splits: Collection[str] = SPLITS,
    sampling: str = SAMPLING,
) -> SourcePlan:
    """The videos of MSR-VTT in `folder`, with their captions. With lists, only what they name is taken. Raises ValueError if a
    file or the folder is missing, or an annotation file has another format."""
    videos: dict[str, _Video] = {}
    bad: list[DroppedEntry] = []
    for file in as_files(annotations):
        _read_msrvtt(file, videos, bad)
    lists = {"train": train, "val": val, "test": test}
    return _plan(name, folder, videos, bad, lists, splits, sampling)


def plan_msvd(
    name: str,
    *,
    folder: AnyPath,
    annotations: Files,
    train: Files = None,
    val: Files = None,
    test: Files = None,
    splits: Collection[str] = SPLITS,
    sampling: str = SAMPLING,
) -> SourcePlan:
    """The videos of MSVD in `folder`, with their captions. Raises ValueError as `plan_msrvtt`, and without a list: its
    descriptions name no split."""
    lists = {"train": train, "val": val, "test": test}
    if not any(lists.values()):
        raise ValueError(f"source {name}: none of the lists train, val and test is given, which say an id of a video a line")
    videos: dict[str, _Video] = {}
    for file in as_files(annotations):
        for number, video, caption in _read_msvd(file):
            videos.setdefault(video, _Video(shown(file), number)).captions.append(caption)
    return _plan(name, folder, videos, [], lists, splits, sampling)


def _plan(
    name: str,
    folder: AnyPath,
    videos: Mapping[str, _Video],
    bad: Sequence[DroppedEntry],
    lists: Mapping[str, Files],
    splits: Collection[str],
    sampling: str,
) -> SourcePlan:
    root, lines = existing_folder(folder), [*bad]
    entries: list[Entry | DroppedEntry] = []
    for split, files in lists.items():
        for file in as_files(files):
            for number, video, sentence in _read_ids(file):
                if not is_text(video) or "/" in video:
                    lines.append(malformed(file, number, split, f"{video!r} is no id of a video"))
                    continue
                about = videos.get(video, _Video("", 0))
                captions = [sentence] if sentence else about.captions
                entries.append(Entry(video, split, None, shown(file), number, _extra(captions, about)))
    if not entries:
        for video, about in videos.items():
            entries.append(Entry(video, about.split or "train", None, about.file, about.line, _extra(about.captions, about)))
    else:
        taken = {entry.id for entry in entries}
        for video, about in videos.items():
            if video not in taken:
                where = f"{about.file}:{about.line} has it, and none of the lists"
                lines.append(DroppedEntry(video, about.split or "train", Drop.NOT_CHOSEN, where))
    kept, dropped = settle([*entries, *lines])
    planned = plan_entries(
        name, root, kept, dropped, splits=splits, columns={"sampling": sampling}, by_kind={"rate": (None, None)}
    )
    bare = [entry for entry in kept if CAPTIONS not in (entry.extra or "") and entry.split in splits]
    if not bare:
        return planned
    note = f"{name}: {len(bare):,} videos have no caption, such as that of {bare[0].where}"
    return replaced(planned, counts={**planned.counts, "without a caption": len(bare)}, notes=(*planned.notes, note))


def _extra(captions: Sequence[str], about: _Video) -> str | None:
    return as_extra({CAPTIONS: list(dict.fromkeys(captions)), **about.others})


def _read_msrvtt(file: AnyPath, videos: dict[str, _Video], bad: list[DroppedEntry]) -> None:
    """Add what a file has; the number of an entry takes the line's place."""
    told = read_json(file)
    if not isinstance(told, dict) or not all(isinstance(told.get(part, []), list) for part in ("videos", "sentences")):
        raise ValueError(f'{shown(file)}: is none of MSR-VTT\'s, which have the form {{"videos": [...], "sentences": [...]}}')
    if not told.get("videos") and not told.get("sentences"):
        raise ValueError(f"{shown(file)}: has neither videos nor sentences, as MSR-VTT's annotations do")
    for number, entry in enumerate(told.get("videos", []), start=1):
        video = entry.get("video_id") if isinstance(entry, dict) else None
        split = MSRVTT_SPLITS.get(str(entry.get("split", "train")).lower()) if isinstance(entry, dict) else None
        if not is_text(video) or "/" in video or split is None:
            bad.append(
                malformed(file, number, split or "train", f"{entry!r:.120} is no video of a split train, validate or test")
            )
            continue
        about = videos.setdefault(video, _Video(shown(file), number))
        about.split, about.others = split, {"category": entry.get("category")}
    for number, entry in enumerate(told.get("sentences", []), start=1):
        video, caption = (entry.get("video_id"), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        if not is_text(video) or not is_text(caption) or not caption.strip():
            bad.append(malformed(file, f"sentence {number}", "train", f"{entry!r:.120} is no sentence about a video"))
            continue
        videos.setdefault(video, _Video(shown(file), number)).captions.append(caption.strip())


def _read_msvd(file: AnyPath) -> Iterator[tuple[int, str, str]]:
    """(line, id, caption)."""
    if shown(file).lower().endswith(".csv"):
        yield from _read_corpus(file)
        return
    for number, line in enumerate(read_lines(file), start=1):
        video, _, caption = line.strip().partition(" ")
        if video and not video.startswith("#") and is_text(caption.strip()):
            yield number, video, caption.strip()


def _read_corpus(file: AnyPath) -> Iterator[tuple[int, str, str]]:
    places: dict[str, int] = {}
    for number, _, row in read_rows(file):
        if not places:
            places = {column.lower(): place for place, column in enumerate(row)}
            if lacking := {"videoid", "start", "end", "description"} - places.keys():
                raise ValueError(f"{shown(file)}: the first line names no column {sorted(lacking)[0]!r} of MSVD's corpus")
            continue
        if len(row) < len(places) or ("language" in places and row[places["language"]] != "English"):
            continue
        if caption := row[places["description"]]:
            yield number, "_".join(row[places[column]] for column in ("videoid", "start", "end")), caption


def _read_ids(file: AnyPath) -> Iterator[tuple[int, str, str | None]]:
    """(line, id of a video, the only caption that counts) of a list: an id a line, or a CSV with `video_id`."""
    places: dict[str, int] | None = None
    for number, _, row in read_rows(file):
        if places is None:
            header = [cell.lower() for cell in row]
            places = {column: header.index(column) for column in ("video_id", "sentence") if column in header}
            if "video_id" in places:
                continue
        place = places.get("video_id", 0)
        sentence = row[places["sentence"]] if places.get("sentence", len(row)) < len(row) else None
        yield number, without_extension(row[place]) if place < len(row) else "", sentence or None
