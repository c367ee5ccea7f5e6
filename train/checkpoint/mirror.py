"""Copies of a run's checkpoints in object storage, so that the run survives its machine.

    URL/step-00000500-5a3c77e1/   the files of the checkpoint, as on disk
                                  complete      empty, written when all others have arrived

Object storage has no rename: a copy counts when it has its marker. Each attempt to upload has a place of its own, so that two
machines that both think the run is theirs cannot mix their files. All through fsspec, with the retries of `storage.files`.
"""

import shutil
import uuid
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pipeline.storage import files
from pipeline.storage.remote import as_url
from train.checkpoint.files import PREFIX, surplus

MARKER = "complete"


@dataclass(frozen=True, slots=True)
class Mirror:
    """A place in object storage, s3://bucket/run or of any other protocol that fsspec can write to."""

    url: str

    def names(self) -> list[str]:
        """The checkpoints, step-00000500 ..., of which there is a complete copy, oldest first. Raises OSError."""
        return sorted(self._complete(self._objects()))

    def fetch(self, name: str, folder: Path) -> Path:
        """Download a copy -> folder/name, which must not be there yet. Raises OSError; ValueError if there is no such copy."""
        objects = self._objects()
        place = self._complete(objects).get(name)
        if place is None:
            raise ValueError(f"{self.url} has no complete copy of {name}")
        temporary = folder / f".writing-{uuid.uuid4().hex}"
        temporary.mkdir(parents=True)
        try:
            for file in objects[place]:
                if file != MARKER:
                    files.download(self._address(place, file), temporary / file)
            return temporary.rename(folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def publish(self, checkpoint: Path, keep_last: int, keep_every: int | None) -> None:
        """Upload a checkpoint, then remove those that need not stay. Raises OSError."""
        place = f"{checkpoint.name}-{uuid.uuid4().hex[:8]}"
        for file in sorted(checkpoint.iterdir()):
            files.upload(file, self._address(place, file.name))
        files.write_durably(self._address(place, MARKER), b"")
        objects = self._objects()
        complete = self._complete(objects) | {checkpoint.name: place}  # it is the newest attempt at its step
        dropped = {complete[name] for name in surplus(sorted(complete), keep_last, keep_every)}
        for other, names in objects.items():
            if other in dropped or other not in complete.values():
                for name in sorted(names, key=lambda name: name != MARKER):  # what is half removed must not look whole
                    files.remove(self._address(other, name))

    def withdraw(self, name: str) -> None:
        """A copy does not count any more: it turned out to be damaged. Its files stay until the next upload. Raises OSError."""
        place = self._complete(self._objects()).get(name)
        if place is not None:
            files.remove(self._address(place, MARKER))

    def _objects(self) -> dict[str, list[str]]:
        """{place: names of its objects}"""
        found = defaultdict(list)
        for path in files.listed(self.url):
            place, _, name = path.partition("/")
            if place.startswith(PREFIX) and name:
                found[place].append(name)
        return found

    def _complete(self, objects: dict[str, list[str]]) -> dict[str, str]:
        """{step-00000500: its place}"""
        return {place.rpartition("-")[0]: place for place, names in sorted(objects.items()) if MARKER in names}

    def _address(self, place: str, name: str) -> str:
        return f"{as_url(self.url)}/{place}/{name}"
