"""WebVid: short stock footage with captions; the paper picks 250,000 training videos of its 2.5 million at random.

Annotation files, `results_2M_train.csv` and `results_2M_val.csv` (WebVid-10M's have the same columns): with a header, and
captions that may hold commas and quotes: `videoid,name,page_idx,page_dir,duration,contentUrl`, where the duration is like
`PT00H00M17S`. Files are `PAGE_DIR/VIDEOID.mp4`; they are found by their id wherever they lie below the folder.

Which are chosen depends on seed and id, among the videos whose files are there: see choice.py. So the choice from a complete
copy is the same for everybody, and that from a partial copy changes little as the copy grows.
"""

import re
from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from dataset_builders.plan import Drop, SourcePlan, dropped_table, requests_table, spares_table
from dataset_builders.sources.annotations import SPLITS, AnyPath, DroppedEntry, Files, as_files, malformed, shown
from dataset_builders.sources.choice import check_number, choose
from dataset_builders.sources.listing import count_reasons, dropped_entries, existing_folder, list_videos, match, nothing_found
from dataset_builders.sources.rows import separator
from pipeline.storage.columns import as_extra

NUMBER = 250_000
SAMPLING = "stride:4"
BESIDE = ("name", "page_dir", "contentUrl")  # into `extra`; `name` is the caption
_DURATION = re.compile(rb"PT(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?")


def plan(
    name: str,
    *,
    folder: AnyPath,
    train: Files = None,
    val: Files = None,
    splits: Collection[str] = SPLITS,
    number: int | None = NUMBER,
    seed: int = 0,
    sampling: str = SAMPLING,
) -> SourcePlan:
    """`number` of the training videos in `folder` (None: all), and all validation videos, in the order of the lists.

    UnlabeledHybrid takes training videos only (appendix C.1). Rows without a file and videos that were not chosen can be
    millions: they go into the counts. Raises ValueError if a file or the folder is missing, or a list has no column videoid.
    """
    check_number(name, number)
    if not (train or val):
        raise ValueError(f"source {name}: none of the annotation files train and val is given")
    root = existing_folder(folder)
    tables, bad = [], []
    for split, files in (("train", train), ("val", val)):
        for file in as_files(files):
            rows, rejected = _read(file, split)
            tables.append(rows)
            bad += rejected
    rows, repeated, leaked = _settle(pa.concat_tables(tables))
    listing = list_videos(root)
    place_of_row, other_files, others = match(name, rows["videoid"].combine_chunks(), listing)
    split = rows["split"].to_numpy(zero_copy_only=False)
    wanted = np.isin(split, list(splits))
    there = (place_of_row >= 0) & wanted
    candidates = np.flatnonzero(there & (split == "train"))
    chosen = there & (split != "train")
    if number is not None and number < len(candidates):
        ids = rows["videoid"].take(pa.array(candidates)).cast(pa.binary()).to_pylist()
        candidates = candidates[choose(ids, number, seed)]
    chosen[candidates] = True
    places = np.flatnonzero(chosen)
    taken = rows.take(pa.array(places))
    columns = {
        "path": [listing.paths[place] for place in place_of_row[places]],
        "split": taken["split"],
        "source_id": taken["videoid"],
        "seconds": taken["seconds"],
        "extra": pa.array(_beside([*as_files(train), *as_files(val)], taken["videoid"]), pa.string()),
    }
    requests = requests_table(columns | {"source": name, "root": name, "kind": "video", "sampling": sampling})
    dropped = [
        dropped_entries(name, bad),
        _dropped_rows(name, repeated, Drop.DUPLICATE, "the lists have this id before"),
        _dropped_rows(name, leaked, Drop.LEAK, "the training list has it, and the validation list too"),
        *other_files,
    ]
    counts = {
        "listed": int(wanted.sum()) + len(repeated) + len(leaked) + len(bad),
        "found": int(there.sum()),
        "chosen": len(taken),
        str(Drop.NOT_CHOSEN): int(there.sum()) - len(taken),
        str(Drop.NO_FILE): int((wanted & ~there).sum()),
        **count_reasons(dropped),
    }
    notes = []
    if number is not None and "train" in splits and (short := number - len(candidates)) > 0:
        notes.append(f"{name}: {number:,} training videos were asked for and {len(candidates):,} are there: {short:,} fewer")
    if not len(taken) and wanted.any():
        where = f"{shown([*as_files(train), *as_files(val)][0])}:2"
        looked_for = f"a file {rows['videoid'][int(np.argmax(wanted))].as_py()}.*"
        notes.append(nothing_found(name, root, listing.paths, where, looked_for))
    pairs = [(row, path) for row, place in enumerate(place_of_row[places].tolist()) for path in others.get(place, ())]
    spares = spares_table(name, pairs)
    return SourcePlan(requests=requests, dropped=pa.concat_tables(dropped), counts=counts, notes=tuple(notes), spares=spares)


def _dropped_rows(name: str, rows: pa.Table, reason: Drop, detail: str) -> pa.Table:
    columns = {"split": rows["split"], "source_id": rows["videoid"], "reason": str(reason), "detail": detail}
    return dropped_table({"source": name, **columns}, len(rows))


def _settle(rows: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Rows -> (one for each id, later rows of the same id, training rows of an id that is in the validation list)."""
    held_out = pc.is_in(rows["videoid"], value_set=rows.filter(pc.equal(rows["split"], "val"))["videoid"].combine_chunks())
    leak = pc.and_(held_out, pc.equal(rows["split"], "train"))
    rows, leaked = rows.filter(pc.invert(leak)), rows.filter(leak)
    _, first = np.unique(rows["videoid"].combine_chunks().dictionary_encode().indices.to_numpy(), return_index=True)
    once = np.zeros(len(rows), bool)
    once[first] = True
    return rows.filter(pa.array(once)), rows.filter(pa.array(~once)), leaked


def _read(file: AnyPath, split: str) -> tuple[pa.Table, list[DroppedEntry]]:
    """A list -> (rows with videoid, seconds, split; those that cannot be understood).

    2.5 million rows (690 MB) take 0.7 s in one thread; more gain nothing, and could not say which line is wrong.
    """
    bad: list[DroppedEntry] = []
    wrong: list[int] = []  # rows with too few or too many columns, from 1, the header being row 1

    def wrong_columns(row: pyarrow.csv.InvalidRow) -> str:
        wrong.append(row.number)
        what = f"{row.actual_columns} columns instead of {row.expected_columns}: {row.text[:100]!r}"
        bad.append(malformed(file, row.number, split, what))
        return "skip"

    try:
        with open(file, "rb") as opened:
            mark = separator([opened.readline().decode(errors="replace")])
            opened.seek(0)
            table = pyarrow.csv.read_csv(
                opened,
                read_options=pyarrow.csv.ReadOptions(use_threads=False),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=mark, newlines_in_values=True, invalid_row_handler=wrong_columns
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    # not string: a row that is not UTF-8 must not cost the whole file
                    column_types={"videoid": pa.binary(), "duration": pa.binary()},
                    include_columns=["videoid", "duration"],
                    include_missing_columns=True,
                ),
            )
    except OSError as error:
        raise ValueError(f"annotation file {shown(file)} cannot be read: {error.strerror}") from None
    except pa.ArrowInvalid as error:
        raise ValueError(f"{shown(file)}: is no CSV list of videos: {error}") from None
    if table["videoid"].null_count:  # what include_missing_columns puts there; an empty cell is no null
        raise ValueError(f"{shown(file)}: has no column videoid; the first line of WebVid's lists names the columns")
    valid = pc.match_substring_regex(table["videoid"], "^[0-9A-Za-z_-]{1,64}$")
    for place in np.flatnonzero(~valid.to_numpy(zero_copy_only=False)).tolist():
        line = place + 2
        for number in wrong:
            line += number <= line
        bad.append(malformed(file, line, split, f"videoid {table['videoid'][place].as_py()!r} is no id"))
    table = table.filter(valid)
    known = {"videoid": table["videoid"].cast(pa.string()), "seconds": _seconds(table["duration"])}
    return pa.table(known | {"split": pa.repeat(pa.scalar(split), len(table))}), bad


def _beside(files: Sequence[AnyPath], ids: pa.ChunkedArray) -> list[str | None]:
    """`extra` of these ids, by a second reading in pieces: of millions of captions those that are wanted are in memory."""
    wanted, found = ids.cast(pa.binary()).combine_chunks(), dict[bytes, str | None]()
    columns = ["videoid", *BESIDE]
    for file in files:
        with open(file, "rb") as opened:
            mark = separator([opened.readline().decode(errors="replace")])
            opened.seek(0)
            reader = pyarrow.csv.open_csv(
                opened,
                read_options=pyarrow.csv.ReadOptions(use_threads=False),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=mark, newlines_in_values=True, invalid_row_handler=lambda row: "skip"
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(columns, pa.binary()), include_columns=columns, include_missing_columns=True
                ),
            )
            for batch in reader:
                for row in batch.filter(pc.is_in(batch["videoid"], value_set=wanted)).to_pylist():
                    texts = {name: (row[name] or b"").decode("utf-8", "replace") for name in BESIDE}
                    found.setdefault(row["videoid"], as_extra(texts))
    return [found.get(video) for video in wanted.to_pylist()]


def _seconds(durations: pa.ChunkedArray) -> pa.Array:
    """`PT00H00M17S` -> 17.0; null for anything else. A few hundred different ones are in a list of millions."""
    encoded = durations.combine_chunks().cast(pa.binary()).dictionary_encode()
    values: list[float | None] = []
    for text in encoded.dictionary.to_pylist():
        found = _DURATION.fullmatch(text)
        hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
        values.append(3600 * hours + 60 * minutes + seconds or None)
    return pa.array(values, pa.float64()).take(encoded.indices)
