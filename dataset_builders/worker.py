"""What worker processes are given: a request of any kind -> its results."""

from collections.abc import Iterator
from dataclasses import dataclass

from dataset_builders.clips import Clip, ClipMaker, ClipRequest, Reject
from dataset_builders.indexed_tars import IndexedClip, MemberIndexer
from dataset_builders.presets import EncodeOptions


@dataclass(frozen=True, slots=True)
class Worker:
    """Callable: a video, a part of one, a folder of images, or a member of a tar -> clips or rejects."""

    dataset: str
    scratch: str  # a folder for temporary files
    options: EncodeOptions

    def __call__(self, request: ClipRequest) -> Iterator[Clip | IndexedClip | Reject]:
        if request.kind == "member":
            return MemberIndexer(self.dataset, self.options.min_frames)(request)
        return ClipMaker(self.options, self.scratch)(request)
