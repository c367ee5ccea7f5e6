"""The plan of a build: which clips are wanted from which files, and what was left out and why. No video is touched.

A source (kinetics.py, ava.py, folder.py ...) turns annotation files and a listing of folders into a `SourcePlan`. Its tables
are Arrow, because a hybrid has 1.35 million rows; what every source shares (keys, order, jobs, counts) is done here.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.columns import DROPPED, in_memory
from pipeline.storage.key_frames import Action

REQUEST_SCHEMA = pa.schema(
    [
        ("source", pa.string()),  # name of the source in this build, which its shards carry: "kinetics", "ssv2", "own"
        ("root", pa.string()),  # name of the folder that `path` is relative to; a dataset does not depend on where that lies
        ("path", pa.binary()),  # a video file, a folder of images, or TAR/MEMBER; bytes, because Linux paths are
        (
            "kind",
            pa.string(),
        ),  # "video", "frames", "pieces" (a folder of files 900.mp4, 901.mp4 ... of a second each) or "member"
        ("split", pa.string()),  # "train", "val" or "test"
        ("label", pa.string()),  # class name; null without one
        ("source_id", pa.string()),  # YouTube id and the like; null without one
        ("start", pa.float64()),  # seconds of the file where the wanted part begins and ends; null: its own beginning and end
        ("end", pa.float64()),
        ("seconds", pa.float64()),  # what the annotations say it lasts, for the plan's counts; null where only the file knows
        # frames per second: to re-time a video to, or that a folder of frames was extracted at; else null
        ("rate", pa.float64()),
        ("clip_frames", pa.int32()),  # cut into clips of exactly so many frames and leave out the rest; null: see --max-seconds
        ("first_frame", pa.int32()),  # for "frames": place in the sorted folder of the first image (from 0); null: 0
        ("num_images", pa.int32()),  # for "frames": images to take; null: all from there
        ("at", pa.float64()),  # seconds of the file, like start: of the frame that the clip is about; null: it has none
        ("sampling", pa.string()),  # "stride:4" or "seconds:0.133333", see pipeline.manifest.parse_sampling
        ("extra", pa.string()),  # a JSON object of what the annotations say besides; null where they do not
    ]
)
DROPPED_SCHEMA = in_memory(DROPPED)
# a file that may take the place of a request's, of the same kind; of one request in the order in which they are tried
SPARE_SCHEMA = pa.schema([("request", pa.int64()), ("root", pa.string()), ("path", pa.binary())])


class Drop(StrEnum):
    """Why something that a source knows of is not asked for: the `reason` of dropped.parquet."""

    NO_FILE = "no_file"  # the annotations list it, the folder does not have it
    NOT_LISTED = "not_listed"  # the folder has it, the annotations do not list it
    DUPLICATE = "duplicate"  # the same video is there already, from another list or another file
    LEAK = "leak"  # it is in a training list and in a validation or test list; see --leaks
    NOT_CHOSEN = "not_chosen"  # listed and there, but not among the number that was asked for
    EXCLUDED = "excluded"  # an annotated second that the dataset's own lists leave out
    EMPTY_BOX = "empty_box"  # a box of an annotation or a detection without an area
    OUTSIDE = "outside"  # a box that lies wholly outside of the frame
    MALFORMED = "malformed"  # an annotation row that cannot be understood; the detail names file, line and value


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePlan:
    """What a source contributes, in the order in which it shall lie in the dataset."""

    requests: pa.Table  # REQUEST_SCHEMA
    dropped: pa.Table  # DROPPED_SCHEMA; a sum rather than rows where there would be millions goes into `counts`
    counts: Mapping[str, int] = field(default_factory=dict)  # for the plan and the report, in the order to be read
    # JSON files to write beside the manifest: {"label_map_710.json": [...]}
    files: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # sentences that a user must read
    spares: pa.Table | None = None  # SPARE_SCHEMA: other files of the videos, among the dropped ones
    # of clips about a key frame, by their source_id: BOX_SCHEMA of pipeline.storage.key_frames_writer without the key
    boxes: pa.Table | None = None
    actions: tuple[Action, ...] = ()  # what the people in them may do


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All sources together: REQUEST_SCHEMA with `key` and `clips` (how many clips it is expected to give) in front."""

    requests: pa.Table
    dropped: pa.Table
    parts: Mapping[str, SourcePlan]
    spares: pa.Table  # requests with `instead`, the key of one of `requests`: asked for if that gives nothing, see spares.py

    @property
    def sources(self) -> list[str]:
        return list(self.parts)

    def num_clips(self, source: str) -> int:
        """As many as a source is expected to give."""
        return pc.sum(self.requests["clips"].filter(pc.equal(self.requests["source"], source)), min_count=0).as_py()


def together(parts: Mapping[str, SourcePlan]) -> SourcePlan:
    """The plans of one source's folders, by the names that these shall have as roots -> the source's."""
    tables: dict[str, list[pa.Table]] = {"requests": [], "dropped": []}
    counts: dict[str, int] = {}
    for root, part in parts.items():
        for name, of_all in tables.items():
            table: pa.Table = getattr(part, name)
            place = table.schema.get_field_index("root")
            named = pc.if_else(table["root"].is_valid(), root, pa.scalar(None, pa.string()))
            of_all.append(table.set_column(place, table.schema.field(place), named))
        counts |= {f"{root}: {what}": number for what, number in part.counts.items()}
    requests, dropped = (pa.concat_tables(of_all) for of_all in tables.values())
    notes = tuple(dict.fromkeys(note for part in parts.values() for note in part.notes))
    return SourcePlan(requests=requests, dropped=dropped, counts=counts, notes=notes)


def assemble(parts: Mapping[str, SourcePlan], max_seconds: float) -> Plan:
    """Put sources one after the other, give every request its key, and drop what is asked for twice."""
    requests = pa.concat_tables([part.requests for part in parts.values()]).combine_chunks()
    keys = pa.array(clip_keys(requests), pa.string())
    requests = requests.add_column(0, "key", keys).add_column(1, "clips", expected_clips(requests, max_seconds))
    dropped = [part.dropped for part in parts.values()]
    if pc.count_distinct(keys).as_py() < len(keys):
        first = np.unique(keys.dictionary_encode().indices.to_numpy(), return_index=True)[1]
        repeated = np.ones(len(keys), bool)
        repeated[first] = False
        twice = requests.filter(pa.array(repeated))
        columns = {name: twice[name] for name in ("source", "root", "path", "split", "source_id")}
        dropped.append(dropped_table({**columns, "reason": str(Drop.DUPLICATE), "detail": "is asked for twice"}, len(twice)))
        requests = requests.filter(pa.array(~repeated))
    spares = _spares(requests, parts)
    return Plan(requests=requests, dropped=pa.concat_tables(dropped), parts=parts, spares=spares)


def _spares(requests: pa.Table, parts: Mapping[str, SourcePlan]) -> pa.Table:
    """The spares of sources as requests with keys of their own, and the key of the request that they are for."""
    tables = [requests.slice(0, 0).append_column("instead", pa.array([], pa.string()))]
    for part in parts.values():
        if part.spares is None or not len(part.spares):
            continue
        rows = part.requests.take(part.spares["request"])
        instead = pa.array(clip_keys(rows), pa.string())
        for column in ("root", "path"):
            rows = rows.set_column(rows.schema.get_field_index(column), column, part.spares[column])
        clips = pc.index_in(instead, value_set=requests["key"].combine_chunks())
        clips = requests["clips"].combine_chunks().take(clips)
        rows = rows.add_column(0, "key", pa.array(clip_keys(rows), pa.string())).add_column(1, "clips", clips)
        tables.append(rows.append_column("instead", instead).filter(pc.is_valid(clips)))
    return pa.concat_tables(tables)


def spares_table(root: str, pairs: Sequence[tuple[int, bytes]]) -> pa.Table:
    """(row of a request, path of a file) -> SPARE_SCHEMA."""
    requests, paths = [request for request, _ in pairs], [path for _, path in pairs]
    return pa.table([requests, pa.array([root] * len(pairs), pa.string()), pa.array(paths, pa.binary())], schema=SPARE_SCHEMA)


def expected_clips(requests: pa.Table, max_seconds: float) -> pa.Array:
    """How many clips each request will give, as far as the annotations tell: one where they do not."""
    seconds = pc.coalesce(requests["seconds"], pc.subtract(requests["end"], requests["start"])).to_numpy()
    clip_seconds = pc.divide(pc.cast(requests["clip_frames"], pa.float64()), requests["rate"]).to_numpy()
    with np.errstate(invalid="ignore"):
        clips = np.where(np.isfinite(clip_seconds), seconds // clip_seconds, np.ceil(seconds / max_seconds))
    return pa.array(np.maximum(1, np.where(np.isfinite(clips), clips, 1)).astype(np.int32))


def clip_keys(requests: pa.Table) -> list[str]:
    """WebDataset keys: ASCII, without dots or slashes, the same on every machine and wherever a folder lies.

    A readable piece of the file's name (at most 60 characters) and 12 hexadecimal digits of a hash of source, root, path and
    part of the file: among 1.35 million files two share one with a probability of 0.3 % if all had the same name, practically
    never otherwise; `write_manifest` would refuse them.
    """
    names = ("source", "root", "path", "start", "first_frame")
    keys = []
    for batch in requests.select(names).to_batches(max_chunksize=1 << 16):  # Python objects of one batch at a time
        keys += [clip_key(*row) for row in zip(*(batch[name].to_pylist() for name in names), strict=True)]
    return keys


def clip_key(source: str, root: str, path: bytes, *part: object) -> str:
    """The key of one clip; `part` tells clips of one file apart."""
    name = path[path.rfind(b"/") + 1 :]
    dot = name.rfind(b".")
    stem = name[:dot] if dot > 0 else name
    if not PLAIN(stem):
        ascii_stem = unicodedata.normalize("NFKD", stem.decode("utf-8", "replace")).encode("ascii", "ignore")
        stem = re.sub(rb"[^A-Za-z0-9_]+", b"-", ascii_stem)[:60].strip(b"-")
    what = b"%s\0%s\0%s" % (source.encode(), root.encode(), path)
    if part and any(one is not None for one in part):
        what = b"\0".join((what, *(str(one).encode() for one in part if one is not None)))
    digest = hashlib.blake2b(what, digest_size=6).hexdigest()
    return f"{stem.decode()}-{digest}" if stem else digest


PLAIN = re.compile(rb"[A-Za-z0-9_][A-Za-z0-9_-]{0,59}").fullmatch


def requests_table(columns: Mapping[str, Any], num_rows: int | None = None) -> pa.Table:
    """Columns by name (arrays, lists or one value for all rows) -> REQUEST_SCHEMA; missing ones are null."""
    return _table(REQUEST_SCHEMA, columns, num_rows)


def dropped_table(columns: Mapping[str, Any], num_rows: int | None = None) -> pa.Table:
    """Likewise DROPPED_SCHEMA."""
    return _table(DROPPED_SCHEMA, columns, num_rows)


def _table(schema: pa.Schema, columns: Mapping[str, Any], num_rows: int | None) -> pa.Table:
    assert not set(columns) - set(schema.names), f"unknown columns {set(columns) - set(schema.names)}"
    whole = {name: value for name, value in columns.items() if isinstance(value, list | pa.Array | pa.ChunkedArray)}
    if num_rows is None:
        num_rows = len(next(iter(whole.values())))
    arrays = []
    for entry in schema:
        value = columns.get(entry.name)
        if entry.name in whole:
            array = value if isinstance(value, pa.Array | pa.ChunkedArray) else pa.array(value, entry.type)
            array = array.cast(entry.type)
        elif value is None:
            array = pa.nulls(num_rows, entry.type)
        else:
            array = pa.repeat(pa.scalar(value, entry.type), num_rows)
        assert len(array) == num_rows, f"{entry.name} has {len(array)} values for {num_rows} rows"
        arrays.append(array)
    return pa.table(arrays, schema=schema)
