"""What worker processes are given: a request of any kind -> its results."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from dataset_builders.clips import Clip, ClipMaker, ClipRequest, Reject
from dataset_builders.indexed_tars import IndexedClip, MemberIndexer
from dataset_builders.presets import EncodeOptions
from pipeline.remote import StorageError, is_url


@dataclass(frozen=True, slots=True)
class Worker:
    """Callable: a video, a part of one, a folder of images, or a member of a tar -> clips or rejects.

    Raises StorageError where the folder that they are in cannot be read: no file is to blame for that.
    """

    dataset: str
    scratch: str  # a folder for temporary files
    options: EncodeOptions

    def __call__(self, request: ClipRequest) -> Iterator[Clip | IndexedClip | Reject]:
        member = request.kind == "member"
        make = MemberIndexer(self.dataset, self.options.min_frames) if member else ClipMaker(self.options, self.scratch)
        for result in make(request):
            if isinstance(result, Reject):
                check_folder(os.fsdecode(request.folder))
            yield result


def check_folder(folder: str) -> None:
    """Raises StorageError if a source's folder is gone, or empty, as a disk that is not mounted is."""
    if is_url(folder):
        return
    try:
        with os.scandir(folder) as entries:
            wrong = "it is empty" if next(entries, None) is None else None
    except OSError as error:
        wrong = error.strerror
    if wrong:
        raise StorageError(f"the files of {folder!r} cannot be read any more: {wrong}; is it mounted?", transient=True)
