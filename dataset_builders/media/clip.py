"""What is wanted of a file, and what comes of it: a clip, or the reason why there is none."""

from dataclasses import dataclass
from typing import Any

from dataset_builders.media.rejects import Reason


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """What is wanted of one file or folder of images, and what is known of it before anyone looked; see plan.REQUEST_SCHEMA."""

    folder: bytes
    path: bytes  # relative to the folder: a dataset does not depend on where its sources lay
    source: str
    key: str
    label: str | None = None
    split: str = "train"
    sampling: str = "seconds:0.133333"
    source_id: str | None = None
    kind: str = "video"  # or `path` is a folder, of images: "frames", or of files of a second each: "pieces"
    start: float | None = None  # seconds of the file, of the wanted part's beginning and end; None: the file's own
    end: float | None = None
    rate: float | None = None  # frames per second: to re-time a video to, or that of a folder of images
    clip_frames: int | None = None  # cut into clips of so many frames; None: into equal ones of at most max_seconds
    first_frame: int | None = None  # of a folder of images: place of the first one that is wanted, from 0
    num_images: int | None = None  # None: all from there
    at: float | None = None  # seconds of the file, like `start`: of the frame that the clip is about, which must be in it
    extra: str | None = None  # JSON of what the annotations say besides


@dataclass(frozen=True, slots=True)
class EncodedClip:
    """A clip that was taken. `row` has the manifest's columns but for shard, offset and size, and of a clip that is about a
    frame the `jobs.KEY_FRAME_COLUMNS`."""

    data: bytes
    extension: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reject:
    """A request, or a clip of one, that was not taken."""

    reason: Reason
    detail: str
    start: float | None = None  # seconds of the source file; None for all of it
    end: float | None = None
