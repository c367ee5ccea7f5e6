"""The decoder contract on DALI: NVDEC on a GPU; the same graph on a CPU, for VP8, VP9 and MJPEG, so that tests reach it.

    decoder = DaliDecoder("cuda", threads=14, size=224)
    views, failures = decoder([trim(request, "cuda") for request in requests])

*What is sent.* DALI decodes from frame 0 of what it is given, whatever frames are asked for, and begins again for a frame that
is asked for twice. So `trim` copies only the packets from the key frame before the first wanted frame up to the last wanted
one into a Matroska stream in memory, and gives them new time stamps, 0, 1, 2 ... in presentation order: variable rates, edit
lists and negative stamps end there. It takes 2.5 ms a clip, 2.0 of them to open it (both twice where frames are not equally
spaced); MP4, NUT and IVF take as long, and DALI takes H.264 to NVDEC from Matroska and MP4 only. Of 300 frames of VP9,
448 x 256, GOP 32, 16 wanted at stride 4 from a random start: 27 % of the bytes, 146 instead of 194 ms a clip on one core.

*Dynamic or pipeline mode.* The graph is three calls of `nvidia.dali.experimental.dynamic`: decode, colour, resize. On two cores
decoding these clips into four 224² views took 50 ms a clip in dynamic mode, 55 in a pipeline (sent whole: 71 and 69). The
difference is that R views are one resize, of a batch which names each clip R times; a pipeline needs R of them and a copy to
join them. And a clip that fails costs an exception, not the pipeline: a batch that fails is halved until the culprit is alone,
about 2 log2 B calls. Everything on a CPU: 146 ms a clip (decode 41, colour 50, resize 55) where libav takes 47.

*Where it lives.* In the trainer's process, on a stream of its own; the sidecar only reads and trims. Two processes on one GPU
take turns (without MPS, time slices of milliseconds), and DALI waits for its stream after every decoded frame, 5,800 times a
second for ViT-g: a sidecar with its own CUDA context would wait a slice for each. Here its kernels run beside the step's, and
pixels reach the model without a copy. What it costs: a decoder that poisons the CUDA context ends the run (it resumes
exactly). Files as people made them are opened, hashed, demultiplexed and checked in the sidecar; NVDEC sees only our own remux.

*What is not taken* (`can_decode`, `UnsupportedClipError`) is decoded by libav; nothing is decoded inexactly. "On a GPU" means:
by DALI's documentation and source (2.4), until `benchmarks/gpu_suite.py` has shown it.
"""

import importlib.util
import io
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
import pyarrow as pa
import torch

from pipeline.decode import ClipRequest, DecodeError, Failure
from pipeline.manifest import Clip, Manifest

CPU_CODECS = ("vp8", "vp9", "mjpeg")  # of the wheels since 2.1.1
# smallest and largest (width, height) of NVDEC. Not here: MJPEG (out-commented in DALI), MPEG-4 (B-frames without time
# stamps come out in decoding order), AV1 (A100, H100 and H200 have no decoder for it)
GPU_CODECS = {
    "h264": ((48, 16), (4096, 4096)),
    "hevc": ((144, 144), (8192, 8192)),
    "vp8": ((48, 16), (4096, 4096)),
    "vp9": ((128, 128), (8192, 8192)),
}
PIXEL_FORMATS = {  # DALI's conversion is checked for these
    "cpu": ("yuv420p", "yuvj420p", "yuvj422p", "yuvj444p"),
    "cuda": ("yuv420p", "yuvj420p"),
}
LUMA = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}  # weights of red and blue (H.273)
# DALI rounds to the nearest level; swscale's fast path (`decode.SWSCALE_FLAGS`) truncates three times and comes out this much
# darker in red, green, blue: means over real clips against exact arithmetic. Both decoders must give the same pixels, and
# swscale's are those of decord, OpenCV and PyAV, which the official models saw.
TRUNCATION = {"limited": (-0.95, -1.35, -1.0), "full": (-0.4, -0.85, -0.45)}


class UnsupportedClipError(ValueError):
    """A clip that DALI would not decode exactly; libav does. The message is the reason."""


@dataclass(frozen=True, slots=True)
class TrimmedClip:
    """What the decoder is sent of one clip."""

    clip: Clip
    data: bytes  # Matroska: the packets from a key frame to the last wanted frame
    frames: np.ndarray  # (n,) int32, the distinct wanted frames, ascending, counted from that key frame
    places: np.ndarray  # (R, T) int64, which of the n frames stands where
    boxes: np.ndarray  # (R, 4) int64 (x, y, width, height) in the displayed frame


@dataclass(frozen=True, slots=True)
class DecoderChoice:
    """Which decoder takes a dataset on a device, and why."""

    name: Literal["libav", "dali", "both"]
    reasons: dict[str, int]  # why clips are left to libav -> how many


def can_decode(clip: Clip, device: str | torch.device) -> str | None:
    """None if DALI decodes such a clip on the device, else the reason. Asks the manifest only; `trim` asks the stream."""
    if torch.device(device).type == "cpu":
        return None if clip.codec in CPU_CODECS else f"DALI decodes {', '.join(CPU_CODECS)} on a CPU, not {clip.codec}"
    if clip.codec not in GPU_CODECS:
        return f"DALI decodes {', '.join(GPU_CODECS)} on a GPU, not {clip.codec}"
    low, high = GPU_CODECS[clip.codec]
    if any(not least <= side <= most for least, side, most in zip(low, _coded_size(clip), high, strict=True)):
        return f"NVDEC decodes {clip.codec} from {low[0]} x {low[1]} to {high[0]} x {high[1]} pixels"
    return None


def choose_decoder(manifest: Manifest, device: str | torch.device) -> DecoderChoice:
    """What `auto` means here: on a CPU libav, three times as fast there; on a GPU DALI for what it can decode."""
    device = torch.device(device)
    count = len(manifest)
    if device.type == "cpu":
        return DecoderChoice("libav", {"the batch is wanted on a CPU": count})
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return DecoderChoice("libav", {"nvidia-dali-cuda130 is not installed": count})
    names = ["codec", "width", "height", "rotation"]
    columns = pa.table({name: manifest.column(name).cast(pa.string()) for name in names})
    kinds = columns.group_by(names).aggregate([([], "count_all")]).to_pylist()  # 1.35 million rows are some hundred kinds
    reasons: dict[str, int] = {}
    for kind in kinds:
        clip = _sketch(kind["codec"], int(kind["width"]), int(kind["height"]), int(kind["rotation"]))
        if (reason := can_decode(clip, device)) is not None:
            reasons[reason] = reasons.get(reason, 0) + kind["count_all"]
    left = sum(reasons.values())
    return DecoderChoice("dali" if not left else "libav" if left == count else "both", reasons)


def _sketch(codec: str, width: int, height: int, rotation: int) -> Clip:
    return Clip(0, "", "", 0, 0, 0, width, height, codec, rotation, "", "", 0, 0, (), "")


def trim(request: ClipRequest, device: str | torch.device = "cpu") -> TrimmedClip:
    """Copy the needed packets of a clip, without decoding, into a stream of their own.

    Raises DecodeError for damage that shows without decoding (a missing packet, which DALI would deliver as a black frame; a
    packet that is no frame), UnsupportedClipError where DALI would not give the same frames as libav.
    """
    clip, kind = request.clip, torch.device(device).type
    if (reason := can_decode(clip, device)) is not None:
        raise UnsupportedClipError(reason)
    frames = np.broadcast_to(request.frames, (len(request.boxes), request.frames.shape[-1]))
    wanted, places = np.unique(frames, return_inverse=True)
    try:
        stamps = _time_stamps(clip, request.data, kind)
        if wanted[-1] >= len(stamps):
            raise DecodeError(Failure.MISSING_FRAMES, f"frame {wanted[-1]} was asked for, there are packets of {len(stamps)}")
        for start in sorted({0, *(k for k in clip.keyframes if k <= wanted[0])}, reverse=True):
            with _open(request.data) as container:  # anew for a second try: not every container seeks to its beginning
                stream = _video_stream(container, kind)
                packets = _packets(clip, container, stream, stamps[: wanted[-1] + 1], start)
                if packets:
                    for packet in packets:
                        _check_packet(clip.codec, packet, kind)
                    data, shown = _remux(clip.codec, packets, stream)
                    break
    except (av.FFmpegError, EOFError) as error:
        raise DecodeError(Failure.DAMAGED, f"{type(error).__name__}: {error}") from error
    numbers = np.searchsorted(shown, stamps[wanted]).astype(np.int32)
    return TrimmedClip(clip, data, numbers, places.reshape(frames.shape), request.boxes)


def _open(data: bytes) -> av.container.InputContainer:
    return av.open(io.BytesIO(data), "r", metadata_errors="replace")


def _video_stream(container: av.container.InputContainer, kind: str) -> av.VideoStream:
    if not container.streams.video:
        raise DecodeError(Failure.DAMAGED, "it has no video stream")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context.pix_fmt is None:
        raise DecodeError(Failure.DAMAGED, "its beginning does not say what its frames are")
    if context.pix_fmt not in PIXEL_FORMATS[kind]:
        raise UnsupportedClipError(f"its pixel format is {context.pix_fmt}")
    if container.format.name == "avi" and context.has_b_frames:
        raise UnsupportedClipError("AVI does not say in which order its B-frames are shown")
    if kind == "cuda" and context.field_order > 1:  # 0 is unknown, 1 progressive
        raise UnsupportedClipError("it is interlaced: DALI would count its fields")
    return stream


def _time_stamps(clip: Clip, data: bytes, kind: str) -> np.ndarray:
    """Of all frames in presentation order; where they are not equally spaced that takes a pass over the packets."""
    if clip.pts_step:
        return clip.pts_start + clip.pts_step * np.arange(clip.num_frames)
    with _open(data) as container:
        packets = container.demux(_video_stream(container, kind))
        shown = (p for p in packets if p.size and not p.is_discard and not _hidden(clip.codec, p))
        return np.array(sorted(packet.pts for packet in shown if packet.pts is not None))


def _packets(
    clip: Clip, container: av.container.InputContainer, stream: av.VideoStream, stamps: np.ndarray, start: int
) -> list[av.Packet]:
    """From the packet of frame `start` on, in decoding order, all that hold the frames up to the last of `stamps`.

    Empty if decoding cannot begin there, but at an earlier key frame.
    """
    first, missing = int(stamps[start]), set(stamps[start:].tolist())
    if start:
        container.seek(first, stream=stream, backward=True)
    packets: list[av.Packet] = []
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.pts is None:
            raise UnsupportedClipError("its packets have no presentation time stamps")
        if start and packet.pts < first and packets:
            return []  # an open GOP: a frame that is shown before its key frame needs the GOP before
        # from frame 0 on everything is taken: an edit list may have hidden what comes before it
        if packets or (packet.is_keyframe and (packet.pts == first or not start)):
            packets.append(packet)
            missing.discard(packet.pts)
            if not missing:
                return packets
    if start and not packets:
        return []
    number = int(np.searchsorted(stamps, min(missing)))
    raise DecodeError(Failure.MISSING_FRAMES, f"the packet of frame {number} of {clip.num_frames} is missing")


def _remux(codec: str, packets: list[av.Packet], stream: av.VideoStream) -> tuple[bytes, np.ndarray]:
    """-> (Matroska with stamps 0, 1, 2 ... in presentation order, the old stamps of its visible frames, ascending)."""
    old = np.array([packet.pts for packet in packets])
    order = np.sort(old)
    if (np.diff(order) == 0).any():
        raise UnsupportedClipError("its time stamps are not unique")
    shown = np.sort(old[[not _hidden(codec, packet) for packet in packets]])
    new = np.searchsorted(order, old)
    delay = int((np.arange(len(new)) - new).max())
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        target = output.add_stream_from_template(stream)
        for number, packet in enumerate(packets):
            packet.stream = target
            packet.time_base = Fraction(1, 25)
            packet.pts, packet.dts = int(new[number]), number - delay
            output.mux(packet)
    return buffer.getvalue(), shown


def _hidden(codec: str, packet: av.Packet) -> bool:
    """VP8's alternate reference frames are packets of their own that show nothing."""
    return codec == "vp8" and not memoryview(packet)[0] >> 4 & 1


def _check_packet(codec: str, packet: av.Packet, kind: str) -> None:
    """What a packet's first and last byte say: whether it is a frame at all, and one that NVDEC delivers as one frame."""
    data = memoryview(packet)
    first, last = data[0], data[-1]
    if packet.is_corrupt or (codec == "vp9" and first >> 6 != 2) or (codec == "mjpeg" and bytes(data[:2]) != b"\xff\xd8"):
        raise DecodeError(Failure.DAMAGED, f"the packet at time stamp {packet.pts} is no {codec} frame")
    if codec == "vp9" and kind == "cuda" and (last & 0xE0 == 0xC0 or first >> 3 & 1):
        # DALI counts what NVDEC decodes: a superframe as two frames, a frame shown again as none
        raise UnsupportedClipError("its VP9 stream has hidden frames")


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

    def __init__(self, device: str | torch.device, threads: int, size: int) -> None:
        """`threads` clips are in work at a time: decoders in flight on a GPU; `size`: side of a view in pixels.

        Raises ValueError if DALI is not installed or finds no such device.
        """
        try:
            import nvidia.dali.experimental.dynamic as dynamic
            from nvidia.dali.types import DALIInterpType
        except ImportError as error:
            raise ValueError(f"DALI is not installed ({error}); install nvidia-dali-cuda130, or use libav") from error
        self._dali, self._linear = dynamic, DALIInterpType.INTERP_LINEAR
        self.device, self.size = torch.device(device), size
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
            self._context = dynamic.EvalContext(num_threads=threads, **place)
        except RuntimeError as error:
            raise ValueError(f"DALI cannot use {self.device}: {_cause(error)}") from error

    def __call__(
        self, clips: Sequence[ClipRequest | TrimmedClip]
    ) -> tuple[torch.Tensor, list[tuple[int, DecodeError | UnsupportedClipError]]]:
        """-> (uint8 (B, R, T, size, size, 3) on the device, [(index of a failed clip, why)]); R and T are equal in all clips.

        A failed clip's views are black, for the caller to replace. On a GPU the views are those of `stream`: let the stream
        that uses them wait for it, and `retire` them afterwards. Raises RuntimeError if the device itself fails.
        """
        good: list[tuple[int, TrimmedClip]] = []
        failures: list[tuple[int, DecodeError | UnsupportedClipError]] = []
        for index, clip in enumerate(clips):
            try:
                good.append((index, trim(clip, self.device) if isinstance(clip, ClipRequest) else clip))
            except (DecodeError, UnsupportedClipError) as error:
                failures.append((index, error))
        with torch.cuda.stream(self.stream):
            parts = self._isolated(good, failures)
            if len(parts) == 1 and len(parts[0][0]) == len(clips):
                return parts[0][1], failures
            first = clips[0]
            shape = (len(first.boxes), (first.places if isinstance(first, TrimmedClip) else first.frames).shape[-1])
            views = torch.zeros((len(clips), *shape, self.size, self.size, 3), dtype=torch.uint8, device=self.device)
            for indices, part in parts:
                views[indices] = part
        return views, sorted(failures, key=lambda failure: failure[0])

    def retire(self, views: torch.Tensor, stream: torch.cuda.Stream) -> None:
        """Keep views until the work that is queued on a stream now is done: their memory is DALI's, not torch's."""
        while self._retired and self._retired[0][1].query():
            self._retired.popleft()
        self._retired.append((views, stream.record_event()))

    def _isolated(
        self, clips: list[tuple[int, TrimmedClip]], failures: list[tuple[int, DecodeError | UnsupportedClipError]]
    ) -> list[tuple[list[int], torch.Tensor]]:
        """Decode a batch; if it fails, its halves."""
        if not clips:
            return []
        try:
            return [([index for index, _ in clips], self._decode([clip for _, clip in clips]))]
        except DecodeError as error:
            reason = error
        except RuntimeError as error:
            if self.stream is not None:
                self.stream.synchronize()  # raises if it is the device that failed, and no clip is to blame
            reason = DecodeError(Failure.DAMAGED, _cause(error))
        if len(clips) == 1:
            failures.append((clips[0][0], reason))
            return []
        middle = len(clips) // 2
        return self._isolated(clips[:middle], failures) + self._isolated(clips[middle:], failures)

    def _decode(self, clips: list[TrimmedClip]) -> torch.Tensor:
        dali = self._dali
        views = len(clips[0].boxes)
        with self._context:
            frames = dali.decoders.video(
                dali.batch([np.frombuffer(clip.data, np.uint8) for clip in clips]),
                device="gpu" if self.stream is not None else "cpu",
                frames=dali.batch([clip.frames for clip in clips]),
                pad_mode="none",  # a missing frame is an error; the default is black ones
            ).evaluate()
            for clip, shape in zip(clips, frames.shape, strict=True):
                _check_shape(clip, tuple(shape))
            matrices, offsets = zip(*(colour_transform(c.clip.matrix, c.clip.range == "full") for c in clips), strict=True)
            frames = dali.coord_transform(frames, M=dali.batch(list(matrices)), T=dali.batch(list(offsets)), dtype=dali.uint8)
            tensors = frames.tensors
            sources = [self._placed(tensors[i], places) for i, clip in enumerate(clips) for places in clip.places]
            boxes = np.stack([_coded_box(box, clip.clip) for clip in clips for box in clip.boxes]).astype(np.float32)
            low, high = boxes[:, 1::-1], (boxes[:, :2] + boxes[:, 2:])[:, ::-1]  # (y, x)
            out = dali.resize(
                dali.as_batch(sources),
                size=(self.size, self.size),
                roi_start=dali.batch(list(np.ascontiguousarray(low))),
                roi_end=dali.batch(list(np.ascontiguousarray(high))),
                interp_type=self._linear,
                antialias=True,
                dtype=dali.uint8,
            ).torch()
        out = out.view(len(clips), views, *out.shape[1:])
        for i, clip in enumerate(clips):
            if clip.clip.rotation:
                out[i] = torch.rot90(out[i], clip.clip.rotation // 90, dims=(2, 3))
        return out

    def _placed(self, frames: Any, places: np.ndarray) -> Any:
        """A clip's decoded frames as one view has them; themselves where each is wanted once."""
        if np.array_equal(places, np.arange(frames.shape[0])):
            return frames
        index = torch.from_numpy(places).to(self.device)
        return self._dali.as_tensor(frames.torch().index_select(0, index), layout="FHWC")


def decode_dali(request: ClipRequest, views: np.ndarray) -> None:
    """The contract on DALI's CPU decoder, one thread, for `ClipLoader(decoder=decode_dali)`: tests and comparisons.

    Raises DecodeError, and UnsupportedClipError (a ValueError, which ends a run) for clips that libav has to decode.
    """
    size = views.shape[2]
    decoder: DaliDecoder | None = getattr(_own, "decoder", None)
    if decoder is None or decoder.size != size:
        decoder = _own.decoder = DaliDecoder("cpu", 1, size)
    decoded, failures = decoder([request])
    if failures:
        raise failures[0][1]
    views[:] = decoded[0].numpy()


_own = threading.local()


def _check_shape(clip: TrimmedClip, shape: tuple[int, ...]) -> None:
    width, height = _coded_size(clip.clip)
    if shape[0] != len(clip.frames):
        raise DecodeError(Failure.MISSING_FRAMES, f"{shape[0]} of {len(clip.frames)} frames came out")
    if shape[1:3] != (height, width):
        raise DecodeError(
            Failure.DAMAGED, f"frames are coded as {shape[2]} x {shape[1]}, by the manifest they are {width} x {height}"
        )


def _coded_size(clip: Clip) -> tuple[int, int]:
    return (clip.height, clip.width) if clip.rotation % 180 else (clip.width, clip.height)


def _coded_box(box: np.ndarray, clip: Clip) -> tuple[int, int, int, int]:
    """A box of the displayed frame -> the same pixels in the coded frame, which is turned counter-clockwise for display."""
    x, y, w, h = (int(value) for value in box)
    width, height = _coded_size(clip)
    if clip.rotation == 90:
        return width - y - h, x, h, w
    if clip.rotation == 180:
        return width - x - w, height - y - h, w, h
    if clip.rotation == 270:
        return y, height - x - w, h, w
    return x, y, w, h


def _cause(error: BaseException) -> str:
    """DALI's reason: the innermost exception of a chain, its first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
