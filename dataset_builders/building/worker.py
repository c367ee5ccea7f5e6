"""What worker processes are given: a request of any kind -> its results."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from dataset_builders.media.clip import ClipRequest, EncodedClip, Reject
from dataset_builders.media.clip_maker import ClipMaker
from dataset_builders.media.presets import EncodeOptions
from dataset_builders.tars.members import IndexedClip, MemberIndexer
from pipeline.storage.remote import StorageError, is_url
from pipeline.storage.shards import STALE


@dataclass(frozen=True, slots=True)
class Worker:
    """Callable: a video, a part of one, a folder of images, or a member of a tar -> clips or rejects.

    Raises StorageError where the folder that they are in cannot be read: no file is to blame for that.
    """

    dataset: str
    scratch: str  # a folder for temporary files
    options: EncodeOptions

    def __call__(self, request: ClipRequest) -> Iterator[EncodedClip | IndexedClip | Reject]:
        member = request.kind == "member"
        make = MemberIndexer(self.dataset, self.options.min_frames) if member else ClipMaker(self.options, self.scratch)
        for result in make(request):
            if isinstance(result, Reject):
                check_folder(os.fsdecode(request.folder), os.fsdecode(request.path))
            yield result


def check_folder(folder: str, path: str) -> None:
    """Raises StorageError if a source's folder is gone, or empty, as a disk that is not mounted is, or if the part of it that a
    file is in belongs to a network file system in trouble."""
    if is_url(folder):
        return
    wrong = None
    for place in dict.fromkeys((folder, os.path.dirname(os.path.join(folder, path)))):
        try:
            with os.scandir(place) as entries:
                if next(entries, None) is None and place == folder:
                    wrong = "it is empty"
        except OSError as error:
            if place == folder or error.errno in STALE:
                wrong = error.strerror
        if wrong:
            raise StorageError(f"the files in {place!r} cannot be read any more: {wrong}; is it mounted?", transient=True)
