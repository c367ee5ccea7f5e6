"""Small real videos, made by the same FFmpeg that the builder drives, and what the builder makes of them."""

import os
import subprocess
from pathlib import Path

from dataset_builders.media.clip import ClipRequest, EncodedClip, Reject
from dataset_builders.media.clip_maker import ClipMaker
from dataset_builders.media.ffmpeg_process import ffmpeg_path
from dataset_builders.media.presets import EncodeOptions

X264 = ["-c:v", "libx264", "-preset", "ultrafast"]


def run_ffmpeg(*arguments: str | Path) -> None:
    command = [ffmpeg_path(), "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def make_video(
    path: Path, *output: str, size: str = "64x48", rate: str = "30", frames: int = 20, source: str = "testsrc2"
) -> Path:
    """A moving test picture; `output` are FFmpeg's output options (H.264 without any)."""
    source = f"{source}=size={size}:rate={rate}"
    run_ffmpeg("-f", "lavfi", "-i", source, *(output or X264), "-frames:v", str(frames), path)
    return path


def make_clips(path: Path, options: EncodeOptions | None = None, **request: object) -> list[EncodedClip | Reject]:
    """What the builder makes of a request."""
    folder, name = os.path.split(os.fsencode(path))
    return list(ClipMaker(options or EncodeOptions())(ClipRequest(folder, name, "test", "key", **request)))


def make_clip(path: Path, **options: object) -> EncodedClip | Reject:
    """What the builder makes of one whole file, which is one clip."""
    (made,) = make_clips(path, EncodeOptions(**options))
    return made


def tree(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of what a reader of a dataset sees; the report is named after its folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not {".build", ".cache", "report.html", "card.md"} & set(file.relative_to(folder).parts)
    }
