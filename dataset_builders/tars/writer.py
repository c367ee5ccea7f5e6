"""Shards: a tar of KEY.json + KEY.mp4 per clip, and a DALI index beside it.

A shard is written under a temporary name and renamed when it is whole and on the disk: under its own name it never
exists in part. Its bytes depend on the clips alone: times, owners, modes and order are fixed.
"""

import io
import json
import os
import platform
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from dataset_builders.media.clip import EncodedClip
from pipeline.storage.files import sync_directory, write_durably

BLOCK = tarfile.BLOCKSIZE
REMOVED = "__removed__"  # where clips were that were removed for good: webdataset passes over names that begin so


class ShardWriter:
    """Writes one shard; `finish` gives the rows of its clips with shard, offset and size filled in."""

    def __init__(self, dataset: Path, name: str) -> None:
        from webdataset.writer import TarWriter  # here, because it takes over a second to import (it brings torch)

        self.name = f"shards/{name}.tar"
        self._path = dataset / self.name
        self.size = 0  # bytes of the finished shard, 0 if there is none
        # a name of its own: two processes that do the same job, by mistake, write the same bytes one after the other
        self._temporary = self._path.with_name(f".{name}.{platform.node()}-{os.getpid()}.tar.tmp")
        self._rows: dict[str, dict[str, Any]] = {}
        self._file = self._temporary.open("wb")
        # names are ASCII and below 100 bytes, so USTAR's plain 512-byte headers suffice
        self._tar = TarWriter(self._file, user="tubecell", group="tubecell", mode=0o644, mtime=0, encoder=False)

    def add(self, clip: EncodedClip, offset: int | None = None) -> None:
        """Append a clip and its side file; where its data shall begin at `offset`, after as many zeros as that takes."""
        row = clip.row
        if offset is not None:
            beside = side_file(row) if clip.extension > "json" else None
            begin = offset - BLOCK - (0 if beside is None else BLOCK + -(-len(beside) // BLOCK) * BLOCK)
            if (gap := begin - self._tar.tarstream.offset) > 0:
                filler = tarfile.TarInfo(f"{REMOVED}/gap")
                filler.size = gap - BLOCK
                self._tar.tarstream.addfile(filler, io.BytesIO(bytes(filler.size)))
        self._rows[f"{row['key']}.{clip.extension}"] = row
        self._tar.write({"__key__": row["key"], "json": side_file(row), clip.extension: clip.data})

    def finish(self) -> list[dict[str, Any]]:
        """Close, make durable, rename; a shard without clips leaves no file."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if not self._rows:
            self._temporary.unlink()
            return []
        members = tar_members(self._temporary)
        index = self._path.with_suffix(".idx")
        write_durably(index, dali_index(members).encode())
        self.size = self._temporary.stat().st_size
        os.replace(self._temporary, self._path)
        sync_directory(self._path.parent)
        rows = []
        for name, offset, size in members:
            if row := self._rows.get(name):
                rows.append({**row, "shard": self.name, "offset": offset, "size": size})
        assert len(rows) == len(self._rows), f"{self.name}: {len(self._rows)} clips written, {len(rows)} found in the tar"
        return rows

    def abandon(self) -> None:
        """Give up an unfinished shard and remove what there is of it."""
        with suppress(OSError, ValueError):  # the disk may be full, the file closed: nothing of it is wanted any more
            self._tar.close()
        with suppress(OSError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)


def side_file(row: dict[str, Any]) -> bytes:
    """KEY.json: what readers of plain WebDataset want to know, the same bytes for the same clip."""
    names = ("key", "source", "split", "label", "num_frames", "fps", "width", "height", "codec", "duration", "rotation")
    content = {name: row[name] for name in (*names, "sampling", "source_id", "start", "end", "content_hash")}
    content["path"] = row["path"].decode("utf-8", "backslashreplace")
    if row.get("extra") is not None:
        content["extra"] = json.loads(row["extra"])
    return (json.dumps(content, ensure_ascii=True, sort_keys=True) + "\n").encode()


def tar_members(path: Path) -> list[tuple[str, int, int]]:
    """[(name, offset of its first byte, size)], read back from the file."""
    with tarfile.open(path, "r:") as tar:
        return [(member.name, member.offset_data, member.size) for member in tar]


def dali_index(members: list[tuple[str, int, int]]) -> str:
    """Members of a tar, those of one sample side by side -> text of the index that `fn.readers.webdataset` reads."""
    samples: dict[str, list[str]] = {}
    for name, offset, size in members:
        if name.startswith(REMOVED):
            continue
        key, extension = name.split(".", 1)
        samples.setdefault(key, []).append(f"{extension} {offset} {size} {name}")
    return "".join(f"{line}\n" for line in [f"v1.2 {len(samples)}", *(" ".join(parts) for parts in samples.values())])
