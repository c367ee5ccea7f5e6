"""A clip of our own, made as any other: if that fails, it is the machine, and every file would be blamed for it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

from dataset_builders.media.clip import ClipRequest, Reject
from dataset_builders.media.clip_maker import ClipMaker
from dataset_builders.media.presets import EncodeOptions

WIDTH, HEIGHT, FRAMES = 64, 48, 16
NO_CLIP = "no clip can be made, not even of a picture of our own"
PATIENCE = 60.0  # seconds for FFmpeg to say its version
ANOTHER = "IMAGEIO_FFMPEG_EXE names another program; without it the one that imageio-ffmpeg brings is taken"


@cache
def ffmpeg_banner(program: str) -> str:
    """The first line of what a program says of its version; raises ValueError if it is no FFmpeg that runs here."""
    try:
        done = subprocess.run(
            [program, "-version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=PATIENCE
        )
    except OSError as error:
        raise ValueError(f"the ffmpeg program {program} cannot be run: {error.strerror}. {ANOTHER}") from None
    except subprocess.TimeoutExpired:
        raise ValueError(f"the ffmpeg program {program} does not answer within {PATIENCE:g} s. {ANOTHER}") from None
    if done.returncode or not done.stdout.startswith("ffmpeg version"):
        said = (done.stderr or done.stdout).strip().splitlines()
        detail = f"status {done.returncode}" + (f": {said[-1]}" if said else "")
        raise ValueError(f"the program {program} is no ffmpeg: asked for its version it ends with {detail}. {ANOTHER}")
    return done.stdout.splitlines()[0]


@cache
def try_here(program: str, options: EncodeOptions) -> None:
    """Make our clip in this process, the first time that it is asked; raises ValueError that names what fails."""
    with our_video() as request:
        for result in ClipMaker(replace(options, min_frames=1))(request):
            if isinstance(result, Reject):
                why = f"preset {options.preset}: {result.reason}, {result.detail}"
                raise ValueError(f"{NO_CLIP} ({why}; {program} is {ffmpeg_banner(program)}). {ANOTHER}")


@contextmanager
def our_video() -> Iterator[ClipRequest]:
    """The request for a file without a name, of 16 small frames."""
    frames = (b"FRAME\n" + bytes([number * 9]) * (WIDTH * HEIGHT * 3 // 2) for number in range(FRAMES))
    with os.fdopen(os.memfd_create("trial"), "wb") as file:
        file.write(b"YUV4MPEG2 W%d H%d F25:1 Ip A1:1 C420jpeg\n" % (WIDTH, HEIGHT) + b"".join(frames))
        file.flush()
        # other processes can open it, too
        yield ClipRequest(b"/proc/%d/fd" % os.getpid(), b"%d" % file.fileno(), "trial", "trial")
