"""Existing WebDataset tars, indexed where they lie: their videos become rows of a manifest, and no byte is copied.

    --index '/data/webvid/{000..999}.tar'    or 's3://bucket/webvid/{000..999}.tar', 'https://...'

`plan` reads the headers of the tars and asks for every video in them by the path TAR/MEMBER; see tars/members.py for what
becomes of them.
"""

import os
from concurrent.futures import ThreadPoolExecutor

from braceexpand import braceexpand

from dataset_builders.plan import Drop, SourcePlan, requests_table
from dataset_builders.sources.annotations import AnyPath, shown
from dataset_builders.sources.folder import SAMPLING
from dataset_builders.sources.listing import count_reasons, dropped_files
from dataset_builders.tars.headers import check_plain
from dataset_builders.tars.members import is_utf8, list_videos
from pipeline.progress import Progress
from pipeline.storage import files
from pipeline.storage.remote import is_url

REQUESTS = 16  # at once, of tars behind URLs


def find_tars(pattern: AnyPath) -> tuple[bytes, list[bytes]]:
    """A path with braces ("/data/{000..999}.tar", "/data/{a,b}/0.tar") -> (its root, the tars relative to that, in order).

    Raises ValueError if a tar does not exist, is compressed, or has a name that is not UTF-8, which the manifest's `shard`
    column cannot hold; OSError if the storage behind a URL does not answer.
    """
    text = os.fsdecode(pattern)
    try:
        names = [text] if os.path.exists(text) else list(dict.fromkeys(braceexpand(text)))  # a name may hold braces
    except ValueError:
        raise ValueError(f"--index {text!r}: its braces do not match; wanted is something like '{{000..999}}'") from None
    with ThreadPoolExecutor(REQUESTS) as pool:
        missing = [name for name, there in zip(names, pool.map(files.exists, names), strict=True) if not there]
        if missing:
            told = f"{len(missing)} of {len(names)} files do not exist; the first is {missing[0]!r}"
            raise ValueError(f"--index {text!r}: {told}")
        list(pool.map(check_plain, names))
    folder = root(pattern)
    if is_url(text):
        return folder, [os.fsencode(name)[len(folder) + 1 :] for name in names]
    for name in names:
        if not is_utf8(os.path.abspath(name)):
            raise ValueError(f"--index: the path {name!r} is not UTF-8; rename it, or index it through a link")
    return folder, [os.path.relpath(os.fsencode(os.path.abspath(name)), folder) for name in names]


def root(pattern: AnyPath) -> bytes:
    """The folder that the tars' paths are relative to: that before the first brace, so that a range can grow later."""
    text = os.fsdecode(pattern)
    if is_url(text):
        return os.fsencode(os.path.dirname(text.split("{", 1)[0]))
    return os.fsencode(os.path.abspath(os.path.dirname(text if os.path.exists(text) else text.split("{", 1)[0])))


def plan(name: str, *, pattern: AnyPath, split: str = "train", sampling: str = SAMPLING) -> SourcePlan:
    """Requests of kind "member": the videos of each tar, in their order, under the path TAR/MEMBER.

    A tar that cannot be read to its end, or holds no video, is asked for as such, too: what is wrong with it becomes a
    reject. About 35 us a member (60 with pax headers, which webdataset writes), behind a URL about a request. Raises
    ValueError as `find_tars` does, OSError if a tar vanishes meanwhile.
    """
    folder, tars = find_tars(pattern)
    paths: list[bytes] = []
    repeated: list[bytes] = []
    alone: list[bytes] = []
    faults = bare = 0
    with ThreadPoolExecutor(REQUESTS if is_url(os.fsdecode(folder)) else 1) as pool:
        listed = pool.map(list_videos, [os.fsdecode(os.path.join(folder, tar)) for tar in tars])
        for tar, found in zip(tars, Progress(listed, desc=name, unit="tar", total=len(tars)), strict=True):
            for of_all, members in ((paths, found.videos), (repeated, found.repeated), (alone, found.alone)):
                of_all += [tar + b"/" + os.fsencode(member) for member in members]
            bare += sum(not video.side_files for video in found.videos.values())
            if found.fault:
                paths.append(tar)
                faults += 1
    columns = {"source": name, "root": name, "path": paths, "kind": "member", "split": split, "sampling": sampling}
    detail = "the tar has a video of this name before it"
    dropped = dropped_files(name, repeated, Drop.DUPLICATE, detail)
    counts = {"tars": len(tars), "found": len(paths) - faults, "faulty tars": faults, **count_reasons([dropped])}
    counts |= {"videos without .json, .cls or .txt": bare, ".json, .cls and .txt that belong to no video": len(alone)}
    counts = {what: number for what, number in counts.items() if number or what in ("tars", "found")}
    notes = []
    if alone and bare:
        told = f"{len(alone):,} .json, .cls or .txt belong to no video, such as {shown(alone[0])!r}, and {bare:,} videos"
        notes.append(f"{name}: {told} have none: labels may be missing. WebDataset has KEY.mp4 and KEY.json side by side")
    if repeated:
        notes.append(f"{name}: {len(repeated):,} videos have the name of one before them in their tar, and are left out")
    return SourcePlan(requests=requests_table(columns), dropped=dropped, counts=counts, notes=tuple(notes))
