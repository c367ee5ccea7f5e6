"""The decoder contract on DALI: NVDEC on a GPU; the same graph on a CPU, for VP8, VP9 and MJPEG, so that tests reach it.

    decoder = DaliDecoder("cuda", threads=14, size=224)
    views, failures = decoder([trim(request, "cuda") for request in requests])

*Dynamic or pipeline mode.* The graph is three calls of `nvidia.dali.experimental.dynamic`: decode, colour, resize. On two cores
decoding these clips into four 224² views took 50 ms a clip in dynamic mode, 55 in a pipeline (sent whole: 71 and 69). The
difference is that R views are one resize, of a batch which names each clip R times; a pipeline needs R of them and a copy to
join them. And a clip that fails costs an exception, not the pipeline: a batch that fails is halved until the culprit is alone,
about 2 log2 B calls. Everything on a CPU: 146 ms a clip (decode 41, colour 50, resize 55) where libav takes 47.

*Where it lives.* In the trainer's process (`device_decoding`), on a stream of its own; the sidecar only reads and trims. Two
processes on one GPU take turns (without MPS, time slices of milliseconds), and DALI waits for its stream after every decoded
frame, 5,800 times a second for ViT-g: a sidecar with its own CUDA context would wait a slice for each. Here its kernels run
beside the step's, and pixels reach the model without a copy. What it costs: a decoder that poisons the CUDA context ends the
run (it resumes exactly). Files as people made them are opened, hashed, demultiplexed and checked in the sidecar; NVDEC sees
only our own remux.

*What is not taken* (`can_decode`, `UnsupportedClipError`) is decoded by libav; nothing is decoded inexactly. "On a GPU" means:
by DALI's documentation and source (2.4), until `benchmarks/gpu_suite.py` has shown it.
"""

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.cuda_context import on_stream
from pipeline.decoding.decode import ClipRequest, DecodeError, Failure
from pipeline.decoding.orientation import MIRRORED, stored_box, stored_size
from pipeline.decoding.resize import FRACTION
from pipeline.decoding.trim import TrimmedClip, UnsupportedClipError, trim
from pipeline.storage.manifest import Clip

LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}  # weights of red and blue (H.273)
# DALI rounds to the nearest level; swscale's fast path (`decode.SWSCALE_FLAGS`) truncates three times and comes out this much
# darker in red, green, blue: means over real clips against exact arithmetic. Both decoders must give the same pixels, and
# swscale's are those of decord, OpenCV and PyAV, which the official models saw.
TRUNCATION = {"limited": (-0.95, -1.35, -1.0), "full": (-0.4, -0.85, -0.45)}
# of the device, in DALI's and CUDA's words: no clip's fault
OUT_OF_MEMORY = ("cuda allocation failed", "out of memory", "out_of_memory", "bytes on device")


def colour_transform(matrix: str, full_range: bool) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) and (3,) float32 that turn DALI's RGB into libav's: RGB' = M · RGB + T.

    DALI decodes with BT.601, in the range that the stream is tagged with, whatever its matrix. M undoes that and applies the
    clip's own. On real clips tagged BT.709 the result is off exact arithmetic by 0.4 levels in the mean and 2 at most in 99 %
    (rounding twice); saturated colours that BT.601 had clipped stay clipped.
    """
    correction = _to_rgb(matrix, full_range) @ np.linalg.inv(_to_rgb("bt601", full_range))
    offset = np.array(TRUNCATION["full" if full_range else "limited"])
    return correction.astype(np.float32), offset.astype(np.float32)


def _to_rgb(matrix: str, full_range: bool) -> np.ndarray:
    """YCbCr (without offsets) -> RGB."""
    red, blue = LUMA[matrix]
    green = 1 - red - blue
    luma, chroma = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    r, b = 2 * (1 - red) * chroma, 2 * (1 - blue) * chroma
    return np.array([[luma, 0, r], [luma, -b * blue / green, -r * red / green], [luma, b, 0]])


class DaliDecoder:
    """Batches of clips -> views on a device. One thread at a time may use it."""

    def __init__(
        self,
        device: str | torch.device,
        threads: int,
        size: int | tuple[int, int],
        pixels: type[np.integer] = np.uint8,
    ) -> None:
        """`threads` clips are in work at a time: decoders in flight on a GPU; `size`: side of a view in pixels, or its
        (height, width); `pixels`: np.uint8, antialiased, or np.int16, see `resize`.

        Raises ValueError if DALI is not installed or finds no such device.
        """
        try:
            import nvidia.dali.experimental.dynamic as dynamic
            from nvidia.dali.types import DALIInterpType
        except ImportError as error:
            raise ValueError(
                f"DALI is not installed ({error}); install nvidia-dali-cuda130, or take decoder 'libav'"
            ) from error
        self._dali, self._linear = dynamic, DALIInterpType.INTERP_LINEAR
        self.device, self.size = torch.device(device), size if isinstance(size, tuple) else (size, size)
        self.wide = pixels == np.int16
        self.stream: torch.cuda.Stream | None = None
        self._retired: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        place: dict[str, Any] = {}
        if self.device.type == "cuda":
            self.device = torch.device(
                "cuda", self.device.index if self.device.index is not None else torch.cuda.current_device()
            )
            # of high priority: its many small kernels must not queue behind the step's large ones
            self.stream = torch.cuda.Stream(self.device, priority=-1)
            place = {"device_id": self.device.index, "cuda_stream": self.stream}
        try:
            with on_stream(self.stream):
                self._context = dynamic.EvalContext(num_threads=threads, **place)
        except RuntimeError as error:
            raise ValueError(f"DALI cannot use {self.device}: {_cause(error)}; take decoder 'libav'") from error

    def __call__(
        self, clips: Sequence[ClipRequest | TrimmedClip]
    ) -> tuple[torch.Tensor, list[tuple[int, DecodeError | UnsupportedClipError]]]:
        """-> (`pixels` (B, R, T, H, W, 3) on the device, [(index of a failed clip, why)]); R and T are equal in all clips.

        A failed clip's views are black, for the caller to replace. On a GPU the views are those of `stream`: let the stream
        that uses them wait for it, and `retire` them afterwards. Raises RuntimeError if the device itself fails.
        """
        good: list[tuple[int, TrimmedClip]] = []
        failures: list[tuple[int, DecodeError | UnsupportedClipError]] = []
        for index, clip in enumerate(clips):
            try:
                good.append((index, trim(clip, self.device.type) if isinstance(clip, ClipRequest) else clip))
            except (DecodeError, UnsupportedClipError) as error:
                failures.append((index, error))
        with on_stream(self.stream):
            parts = self._isolated(good, failures)
            if len(parts) == 1 and len(parts[0][0]) == len(clips):
                return parts[0][1], failures
            first = clips[0]
            shape = (len(first.boxes), (first.places if isinstance(first, TrimmedClip) else first.frames).shape[-1])
            dtype = torch.int16 if self.wide else torch.uint8
            views = torch.zeros((len(clips), *shape, *self.size, 3), dtype=dtype, device=self.device)
            for indices, part in parts:
                for index, of_clip in zip(indices, part, strict=True):  # one by one: a list of places would be copied first
                    views[index] = of_clip
        return views, sorted(failures, key=lambda failure: failure[0])

    def retire(self, views: torch.Tensor, stream: torch.cuda.Stream) -> None:
        """Keep views until the work that is queued on a stream now is done: their memory is DALI's, not torch's."""
        while self._retired and self._retired[0][1].query():
            self._retired.popleft()
        self._retired.append((views, stream.record_event()))

    def _isolated(
        self, clips: list[tuple[int, TrimmedClip]], failures: list[tuple[int, DecodeError | UnsupportedClipError]]
    ) -> list[tuple[list[int], torch.Tensor]]:
        """Decode a batch; if it fails, its halves. Clips that lie on their side are resized apart, unless views are squares."""
        if not clips:
            return []
        upright = [entry for entry in clips if entry[1].clip.rotation % 180 == 0]
        if self.size[0] != self.size[1] and 0 < len(upright) < len(clips):
            others = [entry for entry in clips if entry[1].clip.rotation % 180]
            return self._isolated(upright, failures) + self._isolated(others, failures)
        try:
            return [([index for index, _ in clips], self._decode([clip for _, clip in clips]))]
        except DecodeError as error:
            reason = error
        except RuntimeError as error:
            if self.stream is not None:
                self.stream.synchronize()  # raises if it is the device that failed, and no clip is to blame
            if any(phrase in str(error).lower() for phrase in OUT_OF_MEMORY):
                raise
            reason = DecodeError(Failure.DAMAGED, _cause(error))
        if len(clips) == 1:
            failures.append((clips[0][0], reason))
            return []
        middle = len(clips) // 2
        return self._isolated(clips[:middle], failures) + self._isolated(clips[middle:], failures)

    def _decode(self, clips: list[TrimmedClip]) -> torch.Tensor:
        dali = self._dali
        views = len(clips[0].boxes)
        with self._context, dali.EvalMode.sync_cpu:  # else operators run in a thread of DALI's, with a device of its own
            frames = dali.decoders.video(
                dali.batch([np.frombuffer(clip.data, np.uint8) for clip in clips]),
                device="gpu" if self.stream is not None else "cpu",
                frames=dali.batch([clip.frames for clip in clips]),
                pad_mode="none",  # a missing frame is an error; the default is black ones
                affine=False,  # binding threads to the GPU's cores throws where a cpuset has none of them, at the first clip
            )
            for clip, shape in zip(clips, frames.shape, strict=True):
                _check_shape(clip, tuple(shape))
            matrices, offsets = zip(*(colour_transform(c.clip.matrix, c.clip.range == "full") for c in clips), strict=True)
            frames = dali.coord_transform(frames, M=dali.batch(list(matrices)), T=dali.batch(list(offsets)), dtype=dali.uint8)
            tensors = frames.tensors
            sources = [self._placed(tensors[i], places) for i, clip in enumerate(clips) for places in clip.places]
            boxes = np.stack(
                [stored_box(box, *_coded(clip.clip), clip.clip.rotation) for clip in clips for box in clip.boxes]
            ).astype(np.float32)
            low, high = boxes[:, 1::-1], (boxes[:, :2] + boxes[:, 2:])[:, ::-1]  # (y, x)
            out = dali.resize(
                dali.as_batch(sources),
                size=self.size[::-1] if clips[0].clip.rotation % 180 else self.size,  # as coded
                roi_start=dali.batch(list(np.ascontiguousarray(low))),
                roi_end=dali.batch(list(np.ascontiguousarray(high))),
                interp_type=self._linear,
                antialias=not self.wide,
                dtype=dali.float32 if self.wide else dali.uint8,
            ).torch()
        if self.wide:
            out = out.mul_(1 << FRACTION).round_().to(torch.int16)
        out = out.view(len(clips), views, *out.shape[1:])
        if out.shape[3:5] != self.size:
            return torch.stack([_upright(of, clip.clip.rotation) for of, clip in zip(out, clips, strict=True)])
        for i, clip in enumerate(clips):
            if clip.clip.rotation:
                out[i] = _upright(out[i], clip.clip.rotation)
        return out

    def _placed(self, frames: Any, places: np.ndarray) -> Any:
        """A clip's decoded frames as one view has them; themselves where each is wanted once."""
        if np.array_equal(places, np.arange(frames.shape[0])):
            return frames
        index = torch.from_numpy(places).to(self.device, non_blocking=True)
        return self._dali.as_tensor(frames.torch().index_select(0, index), layout="FHWC")


def decode_dali(request: ClipRequest, views: np.ndarray) -> None:
    """The contract on DALI's CPU decoder, one thread, for `ClipLoader(decoder=decode_dali)`: tests and comparisons.

    Raises DecodeError, and UnsupportedClipError (a ValueError, which ends a run) for clips that libav has to decode.
    """
    size = views.shape[2:4]
    decoder: DaliDecoder | None = getattr(_own, "decoder", None)
    if decoder is None or decoder.size != size or decoder.wide != (views.dtype == np.int16):
        decoder = _own.decoder = DaliDecoder("cpu", 1, size, views.dtype.type)
    decoded, failures = decoder([request])
    if failures:
        raise failures[0][1]
    views[:] = decoded[0].numpy()


_own = threading.local()


def _check_shape(clip: TrimmedClip, shape: tuple[int, ...]) -> None:
    width, height = _coded(clip.clip)
    if shape[0] != len(clip.frames):
        raise DecodeError(Failure.MISSING_FRAMES, f"{shape[0]} of {len(clip.frames)} frames came out")
    if shape[1:3] != (height, width):
        raise DecodeError(
            Failure.DAMAGED, f"frames are coded as {shape[2]} x {shape[1]}, by the manifest they are {width} x {height}"
        )


def _coded(clip: Clip) -> tuple[int, int]:
    return stored_size(clip.width, clip.height, clip.rotation)


def _upright(views: torch.Tensor, rotation: int) -> torch.Tensor:
    """(R, T, H, W, 3), as `orientation.upright` has them; a copy, if it is not the same."""
    return torch.rot90(views.flip(3) if rotation >= MIRRORED else views, rotation // 90, dims=(2, 3))


def _cause(error: BaseException) -> str:
    """DALI's reason: the innermost exception of a chain, its first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
