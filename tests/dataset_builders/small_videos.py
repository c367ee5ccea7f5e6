"""Small real videos, made by the same FFmpeg that the builder drives, and what the builder makes of them."""

import os
import subprocess
from pathlib import Path

from dataset_builders.clips import Clip, ClipMaker, ClipRequest, Reject
from dataset_builders.transcode import EncodeOptions, ffmpeg_path

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


def make_clip(path: Path, **options: object) -> Clip | Reject:
    """What the builder makes of one file."""
    folder, name = os.path.split(os.fsencode(path))
    return ClipMaker(EncodeOptions(**options))(ClipRequest(folder, name, "test", "key"))


def tree(folder: Path) -> dict[str, bytes]:
    """{relative path: content} of what a reader of a dataset sees."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not {".build", ".cache"} & set(file.relative_to(folder).parts)
    }
