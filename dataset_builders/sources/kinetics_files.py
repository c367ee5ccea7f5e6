"""Files of Kinetics in the folders that people have: `LABEL/ID_SSSSSS_EEEEEE.mp4`, `ID_SSSSSS_EEEEEE.mp4` or `ID.mp4`, below
`train/`, `val/` or at any depth. Only the name counts: a YouTube id of 11 characters, and the seconds that were cut out."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dataset_builders.plan import Drop
from dataset_builders.sources.annotations import AnyPath, as_files
from dataset_builders.sources.folder import list_files
from dataset_builders.sources.kinetics_lists import ID, NUMBER
from dataset_builders.sources.listing import existing_folder

EXTENSIONS = "mp4|mkv|webm|avi|mov|m4v|flv|3gp|mpg|mpeg|wmv|ts|m2ts|ogv"
# Old downloads are called ID.mp4.mkv or ID.mp4.webm; a broken one is ID.mp4.part, which is no video.
FILE_NAME = rf"(?:^|/)(?P<id>{ID})(?:_(?P<start>{NUMBER})_(?P<end>{NUMBER}))?(?i:\.(?:{EXTENSIONS}))+$"
TOLERANCE = 1.0  # seconds between the start in a list and in a file's name: some crawlers rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One Kinetics version as a user has it."""

    annotations: Sequence[AnyPath]  # its lists, or folders of them: train, val, and test if leaks into test shall be found
    folder: AnyPath | Sequence[AnyPath] | None = None  # its videos, or several; None: the lists only, for leaks and class names
    classes: AnyPath | None = None  # its class names, one a line, in the order in which label_710to400.json counts them


def kinetics_roots(versions: Mapping[int, Version]) -> dict[str, bytes]:
    """The names of the folders in requests: "k400", "k600", "k700"; a second folder of one version is "k400:2"."""
    return {root: existing_folder(folder) for root, (_, folder) in _folders(versions).items()}


def _folders(versions: Mapping[int, Version]) -> dict[str, tuple[int, AnyPath]]:
    """The version of each folder, by these names."""
    return {
        f"k{version}:{number}" if number > 1 else f"k{version}": (version, folder)
        for version, have in sorted(versions.items())
        for number, folder in enumerate(as_files(have.folder), start=1)
    }


@dataclass(frozen=True, slots=True)
class Files:
    """All files of all folders, newest version first and then in the order of their paths' bytes."""

    roots: list[str]  # a name for each distinct folder
    given: dict[str, tuple[int, int]]  # by the names that the versions have for them: version, place in `roots`
    paths: pa.Array  # binary, relative to the folder
    folder: np.ndarray
    ids: pa.Array  # YouTube id, null where the name has none
    video: np.ndarray  # its number, -1 if no list has it
    start: np.ndarray  # seconds, NaN where the name does not say

    @classmethod
    def find(cls, versions: Mapping[int, Version], ids: pa.Array) -> "Files":
        folders: dict[tuple[int, int], int] = {}  # one and the same folder may be given for several versions
        names: list[str] = []
        listings: list[pa.Array] = []
        given: dict[str, tuple[int, int]] = {}
        for root, (version, folder) in sorted(_folders(versions).items(), key=lambda entry: -entry[1][0]):
            path = existing_folder(folder)
            status = os.stat(path)
            number = folders.setdefault((status.st_dev, status.st_ino), len(folders))
            given[root] = version, number
            if number == len(names):
                names.append(root)
                listings.append(pa.array(list_files(path), pa.binary()))
        paths = pa.concat_arrays(listings) if listings else pa.array([], pa.binary())
        found, start = parse_names(paths)
        folder_of_file = np.repeat(np.arange(len(listings)), [len(listing) for listing in listings])
        return cls(names, given, paths, folder_of_file, found, numbers(found, ids), start)

    def match(self, version: int, video: np.ndarray, start: np.ndarray) -> np.ndarray:
        """The files of a version's own folders for its rows, -1 for none."""
        files = np.flatnonzero(np.isin(self.folder, [number for owner, number in self.given.values() if owner == version]))
        match = match_files(video, start, self.video[files], self.start[files])
        return np.where(match < 0, -1, files[match] if len(files) else -1)

    def among(self, files: np.ndarray) -> np.ndarray:
        """For every file whether it is one of these (-1 is none)."""
        among = np.zeros(len(self.paths), bool)
        among[files[files >= 0]] = True
        return among

    def columns(self, files: np.ndarray, versions: np.ndarray | int = 0) -> dict[str, pa.Array]:
        """root and path of files, null for -1. Of several names of a folder, that of the row's own version counts."""
        folder = np.where(files < 0, -1, self.folder[files] if len(self.folder) else -1)
        names = dict(enumerate(self.roots))
        for place, (root, (version, number)) in enumerate(self.given.items(), start=len(self.roots)):
            folder = np.where((versions == version) & (folder == number), place, folder)
            names[place] = root
        place = pc.index_in(pa.array(folder, pa.int64()), value_set=pa.array(list(names), pa.int64()))
        paths = self.paths.take(pa.array(files, pa.int64(), mask=files < 0))
        return {"root": pc.take(pa.array(list(names.values()), pa.string()), place), "path": paths}


def explain(
    files: Files, rest: np.ndarray, *, taken: np.ndarray, leaked: np.ndarray, wanted: np.ndarray
) -> dict[str, pa.Array]:
    """reason and detail for each of the files that nobody asked for."""
    sentences = [
        (Drop.NOT_LISTED, "its name has no YouTube id"),
        (Drop.NOT_LISTED, "no list has its id"),
        (Drop.NOT_CHOSEN, "its id is only in lists of splits that are not asked for"),
        (Drop.NOT_LISTED, "the lists mean another part of this video"),
        (Drop.LEAK, "its id is in a training list and in a held-out one"),
        (Drop.DUPLICATE, "another file of this video is taken"),
    ]
    num_videos = max(files.video.max(initial=-1), wanted.max(initial=-1)) + 1
    kind_of_video = np.full(num_videos + 1, 2)  # one more, so that -1 is a place
    kind_of_video[-1] = 1
    for place, videos in ((3, wanted), (4, leaked), (5, taken)):
        kind_of_video[videos] = place
    kind = np.where(np.asarray(files.ids.is_null())[rest], 0, kind_of_video[files.video[rest]])
    reasons = pa.array([reason.value for reason, _ in sentences]).take(pa.array(kind))
    return {"reason": reasons, "detail": pa.array([detail for _, detail in sentences]).take(pa.array(kind))}


def parse_names(paths: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Relative paths (binary) -> YouTube ids (string, null where the name has none) and starts in seconds (NaN without)."""
    found = pc.extract_regex(paths, FILE_NAME)
    start = found.field("start").cast(pa.string()) if len(paths) else pa.array([], pa.string())
    ids = pc.if_else(found.is_valid(), found.field("id"), pa.scalar(None, pa.binary())).cast(pa.string())
    timed = pc.fill_null(pc.and_(found.is_valid(), pc.not_equal(start, "")), False)
    return ids, pc.if_else(timed, start, "nan").cast(pa.float64()).to_numpy(zero_copy_only=False)


def match_files(row_video: np.ndarray, row_start: np.ndarray, file_video: np.ndarray, file_start: np.ndarray) -> np.ndarray:
    """For every wanted row the file that has it, or -1; no file serves two rows.

    `*_video` are numbers of YouTube ids (files: -1 for an unknown one), `*_start` seconds (NaN: unknown). A file whose name
    has a start fits within TOLERANCE; one without fits any segment, after those that say so; among equals the first file
    wins, then the first row. 650,000 files against as many rows take 0.45 CPU seconds, reading their names as much.
    """
    num_videos = int(max(row_video.max(initial=-1), file_video.max(initial=-1))) + 1
    order = np.argsort(file_video, kind="stable")
    order = order[np.searchsorted(file_video[order], 0) :]
    count = np.bincount(file_video[order], minlength=num_videos)
    first = np.cumsum(count) - count
    num_pairs = count[row_video]
    row = np.repeat(np.arange(len(row_video)), num_pairs)
    within = np.arange(len(row)) - np.repeat(np.cumsum(num_pairs) - num_pairs, num_pairs)
    file = order[first[row_video[row]] + within]
    distance = np.abs(file_start[file] - row_start[row])
    cost = np.where(np.isnan(distance), 2 * TOLERANCE, distance)
    fits = (cost <= TOLERANCE) | np.isnan(distance)
    row, file, cost = row[fits], file[fits], cost[fits]
    order = np.lexsort((row, file, cost))
    row, file = row[order], file[order]
    match = np.full(len(row_video), -1, np.int64)
    while len(row):  # greedy: every round settles each pair that is first for its row and for its file
        first_of_row, first_of_file = np.zeros(len(row), bool), np.zeros(len(row), bool)
        first_of_row[np.unique(row, return_index=True)[1]] = True
        first_of_file[np.unique(file, return_index=True)[1]] = True
        settled = first_of_row & first_of_file
        match[row[settled]] = file[settled]
        open_pairs = (match[row] < 0) & ~np.isin(file, file[settled])
        row, file = row[open_pairs], file[open_pairs]
    return match


def numbers(ids: pa.Array | pa.ChunkedArray, value_set: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.index_in(ids, value_set=value_set), -1).to_numpy().astype(np.int64)
