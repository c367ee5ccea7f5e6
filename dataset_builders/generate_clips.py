"""Make short videos of moving shapes, to try everything without any footage of one's own.

    tubecell generate-clips --out FOLDER [--clips 64] [--seed 0]

FOLDER/MOTION/0000-SEED.mp4 ...: three seconds each, 30 frames per second, 160x128 pixels, a folder per motion. A textured shape
moves in the way that its folder names, over a textured background and beside a smaller one that drifts, so that what is
where cannot be told from one frame alone. The same options give the same files; files that are there are kept.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import colorsys
import os
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ffmpeg
import numpy as np
from tqdm import tqdm

from dataset_builders.media.ffmpeg_process import ffmpeg_path
from dataset_builders.media.presets import ASM
from pipeline.console import exit_status
from pipeline.machine import usable_cores
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk

WIDTH, HEIGHT, FPS, FRAMES = 160, 128, 30, 90


@dataclass(frozen=True, slots=True)
class Pose:
    """Where a shape is: centre in pixels, radius in pixels, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float = 0.0


def _across(t: float, u: float, length: float, radius: float) -> float:
    """Position on a way through the picture: what leaves on one side comes in again on the other."""
    return (u + 1.2 * t) % 1.0 * (length + 2.4 * radius) - 1.2 * radius


def _slide(t: float, u: np.ndarray) -> Pose:
    radius = 30 + 14 * u[2]
    return Pose(_across(t, u[0], WIDTH, radius), 34 + 60 * u[1], radius)


def _fall(t: float, u: np.ndarray) -> Pose:
    radius = 30 + 14 * u[2]
    return Pose(34 + 92 * u[1], _across(t, u[0], HEIGHT, radius), radius)


def _rotate(t: float, u: np.ndarray) -> Pose:
    return Pose(54 + 52 * u[1], 46 + 36 * u[2], 36 + 14 * u[3], 2 * np.pi * (u[0] + (0.6 + u[3]) * t))


def _zoom_in(t: float, u: np.ndarray) -> Pose:
    return Pose(60 + 40 * u[1], 52 + 24 * u[2], 12 + (44 + 20 * u[3]) * t)


def _bounce(t: float, u: np.ndarray) -> Pose:
    radius = 26 + 10 * u[2]
    return Pose(_across(0.6 * t, u[0], WIDTH, radius), 98 - 66 * abs(np.sin(np.pi * (u[1] + 3 * t))), radius)


def _orbit(t: float, u: np.ndarray) -> Pose:
    turn = 2 * np.pi * (u[0] + 1.1 * t)
    return Pose(80 + (34 + 10 * u[2]) * np.cos(turn), 64 + (26 + 8 * u[2]) * np.sin(turn), 26 + 10 * u[1])


# a motion gives the pose at time t in [0, 1) from four numbers u in [0, 1) that vary it from clip to clip
Motion = Callable[[float, np.ndarray], Pose]
MOTIONS: dict[str, Motion] = {
    "slide-right": _slide,
    "slide-left": lambda t, u: _slide(1 - t, u),
    "fall": _fall,
    "rise": lambda t, u: _fall(1 - t, u),
    "rotate": _rotate,
    "zoom-in": _zoom_in,
    "bounce": _bounce,
    "orbit": _orbit,
}


@exit_status()
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", required=True, type=on_disk, metavar="FOLDER")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="how many, shared among the motions (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other clips (%(default)s)")
    args = parser.parse_args(arguments)
    if args.clips < 1 or args.seed < 0:
        raise ValueError(f"--clips {args.clips} --seed {args.seed}: at least 1 and 0 are needed")
    if not any((args.out / motion).is_dir() for motion in MOTIONS):  # else it was begun
        refuse_dataset("--out", args.out)
    made = generate(args.out, args.clips, args.seed)
    print(f"{args.clips} clips of {min(args.clips, len(MOTIONS))} motions in {args.out}, {made} of them made now")


def generate(folder: Path, clips: int, seed: int) -> int:
    """Make those of the clips that are missing; returns how many. Raises ValueError if FFmpeg fails, OSError for the disk."""
    names = list(MOTIONS)
    paths = [folder / names[number % len(names)] / f"{number // len(names):04d}-{seed}.mp4" for number in range(clips)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    for motion in {paths[number].parent for number in missing}:
        motion.mkdir(parents=True, exist_ok=True)
        for leftover in motion.glob(".*.tmp"):  # of a killed run: named with its process
            if not Path("/proc", leftover.name.split(".")[-2]).exists():
                leftover.unlink(missing_ok=True)

    def make(number: int) -> None:
        write_clip(paths[number], render(paths[number].parent.name, (seed, number)))

    # threads: NumPy lets go of the GIL for most of it, and FFmpeg is a process of its own
    with ThreadPoolExecutor(usable_cores()) as pool:
        for _ in tqdm(pool.map(make, missing), total=len(missing), unit="clip", desc="drawing clips", disable=None):
            pass
    return len(missing)


def render(motion: str, seed: tuple[int, int]) -> np.ndarray:
    """-> uint8 [frames, height, width, 3], a function of motion and seed alone."""
    random = np.random.default_rng(seed)
    hue = random.uniform()
    background = _texture(random, hue, low=0.28, high=0.72, saturation=0.42, coarseness=random.uniform(140, 260))
    kind = int(random.integers(len(SHAPES)))
    outside = _texture(random, hue + random.uniform(0.35, 0.65), low=0.6, high=1.0, saturation=0.72, coarseness=70)
    other_kind = int(random.integers(len(SHAPES)))
    other = _texture(random, hue + random.uniform(0.15, 0.3), low=0.55, high=0.95, saturation=0.55, coarseness=40)
    u, v = random.uniform(size=4), random.uniform(size=4)
    angle = random.uniform(0, 2 * np.pi)
    frames = np.empty((FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number in range(FRAMES):
        t = number / FRAMES
        drift = Pose(24 + 112 * v[0] + 14 * np.sin(2 * np.pi * (t + v[2])), 20 + 88 * v[1], 14 + 6 * v[3], angle + t)
        pose = MOTIONS[motion](t, u)
        picture = background.copy()
        _paint(picture, other, drift, SHAPES[other_kind])
        _paint(picture, outside, Pose(pose.x, pose.y, pose.radius, pose.angle + angle), SHAPES[kind])
        frames[number] = np.rint(picture * 255)
    return frames


def write_clip(path: Path, frames: np.ndarray) -> None:
    """uint8 [frames, height, width, 3] -> MP4 with H.264, in BT.601 and tagged so; raises ValueError if FFmpeg fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two at once must not disturb each other
    video = ffmpeg.input("pipe:", f="rawvideo", pix_fmt="rgb24", s=f"{WIDTH}x{HEIGHT}", r=FPS)
    video = video.filter("scale", flags="accurate_rnd+full_chroma_int+bitexact", out_color_matrix="bt601")
    video = video.filter("format", "yuv420p").filter("setparams", colorspace="smpte170m", range="tv")
    output = video.output(
        f"file:{temporary}",
        **{"f": "mp4", "c:v": "libx264", "crf": 18, "threads": 1, "x264-params": f"{ASM}open-gop=0", "fflags": "+bitexact"},
    )
    command = ffmpeg.compile(output.global_args("-v", "error", "-nostdin"), cmd=ffmpeg_path(), overwrite_output=True)
    done = subprocess.run(command, input=frames.tobytes(), capture_output=True)
    if done.returncode:
        temporary.unlink(missing_ok=True)
        raise ValueError(f"FFmpeg could not write {path}: {done.stderr.decode('utf-8', 'replace').strip()}")
    temporary.replace(path)


def _texture(
    random: np.random.Generator, hue: float, low: float, high: float, saturation: float, coarseness: float
) -> np.ndarray:
    """Light that falls from one side, and waves of about `coarseness` pixels along it, between two neighbouring colours: float
    [height, width, 3] in 0..1.

    The light reaches across the picture, so that what is hidden can be told from what is seen, and a small model learns
    something in minutes. (Of waves of 20 to 100 pixels from all sides it had learned nothing after 400 steps: loss 0.987. Of
    these, 0.863 after 250.)
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    side = random.uniform(0, 2 * np.pi)
    light = ((x - WIDTH / 2) * np.cos(side) + (y - HEIGHT / 2) * np.sin(side)) / 40
    waves = np.zeros((HEIGHT, WIDTH))
    for _ in range(3):
        direction, phase = side + random.normal(0, 0.4), random.uniform(0, 2 * np.pi)
        length = coarseness * random.uniform(0.8, 1.6)
        waves += np.sin((x * np.cos(direction) + y * np.sin(direction)) * (2 * np.pi / length) + phase)
    share = (0.5 + 0.5 * np.tanh(0.6 * light + 0.25 * waves))[..., None]
    dark = np.array(colorsys.hsv_to_rgb(hue % 1, saturation, low))
    bright = np.array(colorsys.hsv_to_rgb((hue + 0.09) % 1, 0.8 * saturation, high))
    return dark + share * (bright - dark)


# signed distance (about, in radii) of a point to the outline of a shape of radius 1 around the origin; negative inside
SHAPES: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda x, y: np.hypot(x, y) - 1,  # disc
    lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.8,  # square
    lambda x, y: np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - 0.55,  # triangle
    lambda x, y: np.hypot(x, y) - 0.72 - 0.28 * np.cos(5 * np.arctan2(y, x)),  # star
    lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.3,  # ring
)


def _paint(picture: np.ndarray, texture: np.ndarray, pose: Pose, shape: Callable[..., np.ndarray]) -> None:
    """Blend a shape into float [height, width, 3], its texture moving and turning with it, with antialiased edges."""
    reach = int(pose.radius * 1.3) + 2
    top, bottom = max(0, int(pose.y) - reach), min(HEIGHT, int(pose.y) + reach + 1)
    left, right = max(0, int(pose.x) - reach), min(WIDTH, int(pose.x) + reach + 1)
    if top >= bottom or left >= right:
        return
    y, x = np.mgrid[top:bottom, left:right] - np.array([pose.y, pose.x])[:, None, None]
    cosine, sine = np.cos(pose.angle), np.sin(pose.angle)
    own_x, own_y = (x * cosine + y * sine) / pose.radius, (y * cosine - x * sine) / pose.radius
    distance = shape(own_x, own_y) * pose.radius  # pixels
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    rim = np.clip(1.5 + distance / 2, 0, 1)[..., None]  # darker towards the edge: sets it off from any background
    column = np.clip(WIDTH / 2 + own_x * 30, 0, WIDTH - 1.001)
    row = np.clip(HEIGHT / 2 + own_y * 30, 0, HEIGHT - 1.001)
    colour = _sample(texture, column, row) * (1 - 0.55 * rim)
    area = picture[top:bottom, left:right]
    area += cover * (colour - area)


def _sample(texture: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Bilinear: texture that turns with its shape must not flicker."""
    c, r = column.astype(int), row.astype(int)
    fc, fr = (column - c)[..., None], (row - r)[..., None]
    upper = texture[r, c] * (1 - fc) + texture[r, c + 1] * fc
    lower = texture[r + 1, c] * (1 - fc) + texture[r + 1, c + 1] * fc
    return upper * (1 - fr) + lower * fr


if __name__ == "__main__":
    sys.exit(main())
