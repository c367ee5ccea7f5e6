"""One clip, from a source file to what the shard and the manifest get: what a worker process does."""

import hashlib
import os
from dataclasses import asdict, dataclass
from typing import Any

from dataset_builders.probe import probe
from dataset_builders.rejects import Reason, RejectedError
from dataset_builders.transcode import EncodeOptions, encode
from dataset_builders.verify import verify


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """A clip that is wanted: where it comes from and what is known about it before anyone looked."""

    folder: bytes
    path: bytes  # relative to the folder: a dataset does not depend on where its sources lay
    source: str
    key: str
    label: str | None = None
    split: str = "train"
    sampling: str = "seconds:0.133333"


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip that was taken. `row` has the manifest's columns but for shard, offset and size."""

    data: bytes
    extension: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reject:
    """A clip that was not taken."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class ClipMaker:
    """Callable for worker processes: ClipRequest -> Clip or Reject."""

    options: EncodeOptions

    def __call__(self, request: ClipRequest) -> Clip | Reject:
        try:
            return self.make(request)
        except RejectedError as error:
            return Reject(error.reason, error.detail)

    def make(self, request: ClipRequest) -> Clip:
        """Probe, encode, decode whole; raises RejectedError."""
        path = os.path.join(request.folder, request.path)
        data, extension, num_frames = encode(path, probe(path), self.options)
        try:
            verified = verify(data)
        except RejectedError as error:
            if num_frames is None:  # `copy`: what does not decode is the source
                raise
            raise RejectedError(Reason.VERIFY_FAILED, f"the encoded clip: {error.detail}") from None
        if num_frames is not None and verified.num_frames != num_frames:
            detail = f"{num_frames} frames were encoded, {verified.num_frames} decode"
            raise RejectedError(Reason.VERIFY_FAILED, detail)
        if verified.num_frames < self.options.min_frames:
            detail = f"{verified.num_frames} frames decode; --min-frames is {self.options.min_frames}"
            raise RejectedError(Reason.TOO_SHORT, detail)
        if min(verified.width, verified.height) < 16:
            detail = f"{verified.width}x{verified.height} pixels; at least 16x16 are needed"
            raise RejectedError(Reason.TOO_SMALL, detail)
        row = {
            "key": request.key,
            "source": request.source,
            "split": request.split,
            "label": request.label,
            **asdict(verified),
            "sampling": request.sampling,
            "path": request.path,
            "source_id": None,
            "start": None,
            "end": None,
            "content_hash": hashlib.blake2b(data, digest_size=16).hexdigest(),
        }
        return Clip(data, extension, row)
