"""From a request to its clips, which the shards and the manifest get: what a worker process does."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from dataset_builders.media.clip import ClipRequest, EncodedClip, Reject
from dataset_builders.media.decode_check import manifest_row, verify
from dataset_builders.media.geometry import shown
from dataset_builders.media.image_folder import ImageFolder
from dataset_builders.media.pieces import joined
from dataset_builders.media.presets import ENCODERS, EncodeOptions
from dataset_builders.media.probe import VideoInfo, probe
from dataset_builders.media.rejects import Reason, RejectedError
from dataset_builders.media.transcode import Piece, Timing, Wanted, copy_file, transcode


@dataclass(frozen=True, slots=True)
class ClipMaker:
    """Callable for worker processes: ClipRequest -> its clips one by one (one is in memory at a time), or why there is none.

    A source is encoded whole before its first clip comes: if anything in the wanted part is damaged, all of it is rejected.
    `scratch` is a folder for the unnamed temporary file of a source that is cut (None: the system's).
    """

    options: EncodeOptions
    scratch: str | None = None

    def __call__(self, request: ClipRequest) -> Iterator[EncodedClip | Reject]:
        try:
            if self.options.preset == "copy":
                yield from self._copy(request)
            else:
                yield from self._transcode(request)
        except RejectedError as error:
            yield Reject(error.reason, error.detail, request.start, request.end)

    def _copy(self, request: ClipRequest) -> Iterator[EncodedClip | Reject]:
        asked = {"a part of a file": request.start is not None or request.end is not None, "another rate": bool(request.rate)}
        asked |= {"clips of equal length": bool(request.clip_frames)}
        refused = ["a folder of images"] if request.kind == "frames" else [what for what, is_asked in asked.items() if is_asked]
        if refused:
            detail = f"preset copy cannot make {' or '.join(refused)}; {', '.join(ENCODERS)} can"
            raise RejectedError(Reason.UNSUPPORTED, detail)
        path = os.path.join(request.folder, request.path)
        data, extension = copy_file(path, probe(path))
        yield EncodedClip(data, extension, self._row(request, data, None))

    def _transcode(self, request: ClipRequest) -> Iterator[EncodedClip | Reject]:
        path = os.path.join(request.folder, request.path)
        if request.kind == "pieces":
            with joined(path, request.start, request.end) as (file, first):
                times: dict[str, Any] = {name: _later(getattr(request, name), -first) for name in ("start", "end", "at")}
                for made in self._transcode(replace(request, folder=b"", path=file, kind="video", **times)):
                    yield _moved(made, request.path, first)
            return
        rate = None
        if request.rate is not None:
            if not 0 < request.rate <= 1000:
                raise RejectedError(Reason.UNSUPPORTED, f"a rate of {request.rate:g} frames per second; allowed are 0 to 1000")
            rate = Fraction(request.rate).limit_denominator(1001)
        source: bytes | ImageFolder
        if request.kind == "frames":
            if rate is None or request.start is not None or request.end is not None:
                raise RejectedError(Reason.UNSUPPORTED, "a folder of images needs a rate, and a part of it first_frame")
            source = ImageFolder.list(path, rate, request.first_frame or 0, request.num_images)
            info, wanted = source.probe(), Wanted(None, request.clip_frames)
            whole, zero = request.first_frame is None and request.num_images is None, (request.first_frame or 0) / float(rate)
        else:
            source, info, wanted = path, probe(path, request.start, request.end), Wanted(rate, request.clip_frames)
            whole, zero = info.window is None, _zero(info, Timing.of(info, wanted))
        timing = Timing.of(info, wanted)
        about: dict[str, Any] = {}
        if request.at is not None:
            about = {"key_frame": 0}
        for piece in transcode(source, info, self.options, wanted, self.scratch):
            start = end = None
            if piece.count > 1 or not whole or wanted.clip_frames:
                start, end = (zero + place / float(timing.rate) for place in (piece.first, piece.first + piece.num_frames))
            try:
                row = self._row(request, piece.data, piece.num_frames) | {"key": _key(request, piece)}
                if start is not None and end is not None:
                    row |= {"start": round(start, 6), "end": round(end, 6)}
                if request.at is not None:
                    begin = zero if start is None else start
                    about["key_frame"] = _key_frame(request.at, begin, float(timing.rate), piece.num_frames)
                    about["shown"] = shown(piece.info, self.options)
                row |= about
                yield EncodedClip(piece.data, "mp4", row)
            except RejectedError as error:
                if piece.count == 1:
                    raise
                yield Reject(error.reason, error.detail, start, end)

    def _row(self, request: ClipRequest, data: bytes, num_frames: int | None) -> dict[str, Any]:
        """Decode a clip whole; raises RejectedError. `num_frames` went into it, None if nobody counted them."""
        try:
            verified = verify(data)
        except RejectedError as error:
            if num_frames is None:  # `copy`: what does not decode is the source
                raise
            raise RejectedError(Reason.VERIFY_FAILED, f"the encoded clip: {error.detail}") from None
        if num_frames is not None and verified.num_frames != num_frames:
            detail = f"{num_frames} frames were encoded, {verified.num_frames} decode"
            raise RejectedError(Reason.VERIFY_FAILED, detail)
        return manifest_row(request, verified, data, self.options.min_frames)


def _moved(made: EncodedClip | Reject, path: bytes, seconds: float) -> EncodedClip | Reject:
    """What came of joined pieces, as if it came of the whole."""
    if isinstance(made, Reject):
        return replace(made, start=_later(made.start, seconds), end=_later(made.end, seconds))
    times = {name: _later(made.row[name], seconds) for name in ("start", "end")}
    return replace(made, row={**made.row, **times, "path": path})


def _later(time: float | None, seconds: float) -> float | None:
    return None if time is None else round(time + seconds, 6)


def _key_frame(at: float, begin: float, rate: float, num_frames: int) -> int:
    """Index of the frame that is shown at `at`, of a clip that begins at `begin`; raises RejectedError if it is not in it."""
    place = round((at - begin) * rate)
    if not 0 <= place < num_frames:
        end = begin + num_frames / rate
        detail = f"the annotated second, {at:g} s of the file, is not in it: frames are there from {begin:.2f} s to {end:.2f} s"
        raise RejectedError(Reason.TOO_SHORT, detail)
    return place


def _key(request: ClipRequest, piece: Piece) -> str:
    digits = max(3, len(str(piece.count - 1)))
    return f"{request.key}-{piece.number:0{digits}d}" if piece.count > 1 else request.key


def _zero(info: VideoInfo, timing: Timing) -> float:
    """Where in the file, in seconds from its beginning, the first encoded frame lies."""
    if timing.limit is not None and info.window is not None:
        return info.window.edges[0] - info.clock
    return 0.0 if info.first is None else info.first - info.clock
