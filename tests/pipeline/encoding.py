"""Clips whose frames carry their number as a bar code, so that a test can read which frame it was given."""

import io
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

from pipeline.storage.manifest import Clip

WIDTH, HEIGHT, CELL = 128, 64, 16  # 8 bits of 16 px in the upper row; the lower half tells left from right


def numbered_frame(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """uint8 (height, width, 3): bit b of the number is the b-th cell of the upper rows, white or black."""
    frame = np.full((height, width, 3), 128, np.uint8)
    for bit in range(8):
        frame[: height // 2, bit * width // 8 : (bit + 1) * width // 8] = 235 if number >> bit & 1 else 20
    frame[height // 2 :, : width // 2] = (200, 60, 60)
    return frame


def read_number(frame: np.ndarray) -> int:
    """The inverse of `numbered_frame`, from the cells' middles; also of a frame that was resized as a whole."""
    height, width = frame.shape[:2]
    middles = frame[height // 4, (np.arange(8) * 2 + 1) * width // 16].mean(-1)
    return sum(1 << bit for bit, level in enumerate(middles) if level > 128)


def describe(
    data: bytes, codec: str, rotation: int = 0, matrix: str = "bt601", color_range: str = "limited", key: str = "clip"
) -> Clip:
    """The manifest's row of a clip, read the slow and certain way: by decoding it."""
    with av.open(io.BytesIO(data), "r") as container:
        frames = [(frame.pts, frame.width, frame.height) for frame in container.decode(video=0)]
    with av.open(io.BytesIO(data), "r") as container:
        keyframes = {packet.pts for packet in container.demux(video=0) if packet.is_keyframe}
    stamps = [pts for pts, _, _ in frames]
    steps = set(np.diff(stamps).tolist())  # Matroska rounds to milliseconds: 33, 34, 33 ...
    width, height = frames[0][1:] if rotation % 180 == 0 else frames[0][:0:-1]
    return Clip(
        row=0,
        key=key,
        shard="",
        offset=0,
        size=len(data),
        num_frames=len(stamps),
        width=width,
        height=height,
        codec=codec,
        rotation=rotation,
        matrix=matrix,
        range=color_range,
        pts_start=stamps[0],
        pts_step=steps.pop() if len(steps) == 1 else 0,
        keyframes=tuple(i for i, pts in enumerate(stamps) if pts in keyframes),
        content_hash="",
    )


def encode_vp9_with_hidden_frames(frames: list[np.ndarray], folder: Path) -> bytes:
    """One GOP of WebM with alternate reference frames, which libvpx makes in two passes only."""
    height, width = frames[0].shape[:2]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-r", "30"]
    command += ["-s", f"{width}x{height}", "-i", "-", "-pix_fmt", "yuv420p", "-c:v", "libvpx-vp9", "-b:v", "200k"]
    command += ["-g", str(len(frames)), "-lag-in-frames", "25", "-cpu-used", "4", "-passlogfile", str(folder / "log")]
    pixels, target = b"".join(frame.tobytes() for frame in frames), folder / "hidden.webm"
    subprocess.run([*command, "-pass", "1", "-f", "null", "-"], input=pixels, check=True)
    subprocess.run([*command, "-pass", "2", str(target)], input=pixels, check=True)
    return target.read_bytes()


REAL_ENCODERS = {  # quick ones
    "vp9": ("-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -crf 24 -b:v 0 -g 32", "webm"),
    "h264": ("-c:v libx264 -preset veryfast -crf 20 -bf 0 -g 32", "mp4"),
    "mjpeg": ("-c:v mjpeg -q:v 3", "avi"),
}


def encode_real(
    video: Path,
    codec: str,
    folder: Path,
    matrix: str = "bt601",
    color_range: str = "limited",
    frames: int = 66,
    multiple: int = 16,
) -> bytes:
    """A part of a real video at short side 256, its sides multiples of `multiple`, encoded with the ffmpeg program."""
    tags = {"bt601": "smpte170m", "bt709": "bt709"}[matrix], {"limited": "tv", "full": "pc"}[color_range]
    options, container = REAL_ENCODERS[codec]
    target = folder / f"{video.stem}-{codec}-{matrix}-{color_range}.{container}"
    side = "if(lt(iw,ih),iw,ih)/256"
    filters = (
        f"scale='trunc(iw/({side})/2)*2':'trunc(ih/({side})/2)*2':out_color_matrix={matrix}:out_range={color_range},"
        f"format={'yuvj420p' if codec == 'mjpeg' else 'yuv420p'},"
        f"crop=trunc(iw/{multiple})*{multiple}:trunc(ih/{multiple})*{multiple},setparams=colorspace={tags[0]}:range={tags[1]}"
    )
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(video), "-an", "-frames:v", str(frames)]
    subprocess.run([*command, "-vf", filters, *options.split(), "-threads", "1", str(target)], check=True)
    return target.read_bytes()


def encode(
    frames: list[np.ndarray],
    codec: str = "libx264",
    container: str = "mp4",
    fps: int = 30,
    gop: int = 8,
    stamps: list[int] | None = None,
    options: dict[str, str] | None = None,
    matrix: str = "bt601",
    full_range: bool = False,
) -> bytes:
    """Encode RGB frames; `stamps` in units of 1/fps makes the frame rate variable."""
    from av.video.reformatter import ColorRange, Colorspace

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        stream.time_base = Fraction(1, fps)
        space = Colorspace.ITU709 if matrix == "bt709" else Colorspace.ITU601
        color_range = ColorRange.JPEG if full_range or codec == "mjpeg" else ColorRange.MPEG
        stream.codec_context.color_range = color_range
        stream.codec_context.colorspace = {"bt601": 5, "bt709": 1}[matrix]
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format=stream.pix_fmt, dst_colorspace=space, dst_color_range=color_range, src_color_range=ColorRange.JPEG
            )
            frame.pts = stamps[number] if stamps else number
            frame.time_base = Fraction(1, fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()
