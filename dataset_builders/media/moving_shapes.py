"""Clips of a textured shape that moves: no frame tells how, see MOTIONS."""

import colorsys
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dataset_builders.media.presets import ASM
from pipeline.decoding.encoding import encode

SMALLEST, LARGEST = 32, 1024  # pixels of a side
PIECE = 4_000_000  # values that are drawn at once


@dataclass(frozen=True, slots=True)
class Film:
    """How large and how long a clip is."""

    width: int = 160
    height: int = 128
    frames: int = 90
    rate: Fraction = Fraction(30)
    """Frames a second."""

    @property
    def side(self) -> int:
        """The shorter one, the measure of all lengths in it."""
        return min(self.width, self.height)

    @staticmethod
    def parse(size: str, frames: int, rate: str) -> "Film":
        """ "160x128", 90, "30" or "7.5". Raises ValueError for sizes that H.264 or the shapes cannot have."""
        width, cross, height = size.partition("x")
        sides = [int(side) for side in (width, height) if side.isdecimal()]
        if not cross or len(sides) < 2 or any(side % 2 or not SMALLEST <= side <= LARGEST for side in sides):
            raise ValueError(f"--size {size}: WIDTHxHEIGHT in pixels is needed, each even and from {SMALLEST} to {LARGEST}")
        if not 1 <= frames <= 10_000:
            raise ValueError(f"--frames {frames}: it must be 1 to 10000")
        try:
            a_second = Fraction(rate).limit_denominator(1001)
        except (ValueError, ZeroDivisionError):
            a_second = Fraction(0)
        if not 1 <= a_second <= 240:
            raise ValueError(f"--fps {rate}: it must be 1 to 240 frames a second")
        return Film(sides[0], sides[1], frames, a_second)


@dataclass(frozen=True, slots=True)
class Shift:
    """How far a shape has come since its start: in short sides of the picture to the right and down, in turns of itself
    (clockwise), and in periods of its swelling; numbers, or arrays of moments."""

    right: Any = 0.0
    down: Any = 0.0
    turns: Any = 0.0
    swell: Any = 0.0


def _orbit(turns: Any) -> Shift:
    return Shift(ORBIT * np.cos(2 * np.pi * turns), ORBIT * np.sin(2 * np.pi * turns))


SPEED, TEMPO = (0.5, 0.9), (1.0, 1.5)  # short sides and periods a second, uniformly drawn for each clip
ORBIT, SWING, SWELL = 0.2, 0.2, 0.3  # radius and amplitude in short sides, the latter in radii of the shape

# A motion gives the shift after a `way` (speed x seconds) and so many `turns` (tempo x seconds). A clip starts anywhere on a
# picture whose edges are joined, at any angle and at any phase of the swelling, drawn uniformly: a shift leaves all three
# uniform, so every frame of every motion has the same distribution. (`turns` of the periodic ones start at a uniform phase.)
Motion = Callable[[Any, Any], Shift]
MOTIONS: dict[str, Motion] = {
    "slide-right": lambda way, turns: Shift(right=way),
    "slide-left": lambda way, turns: Shift(right=-way),
    "fall": lambda way, turns: Shift(down=way),
    "rise": lambda way, turns: Shift(down=-way),
    "sway": lambda way, turns: Shift(right=SWING * np.sin(2 * np.pi * turns)),
    "bob": lambda way, turns: Shift(down=SWING * np.sin(2 * np.pi * turns)),
    "pulse": lambda way, turns: Shift(swell=turns),
    "rest": lambda way, turns: Shift(),
    "orbit": lambda way, turns: _orbit(turns),
    "orbit-back": lambda way, turns: _orbit(-turns),
    "turn": lambda way, turns: Shift(turns=0.5 * turns),
    "turn-back": lambda way, turns: Shift(turns=-0.5 * turns),
}


def draw(job: tuple[Path, str, tuple[int, int], Film]) -> None:
    """A clip's file of what `render` makes. Raises OSError."""
    path, motion, seed, film = job
    write_clip(path, render(motion, seed, film), film.rate)


def render(motion: str, seed: tuple[int, int], film: Film = Film()) -> np.ndarray:
    """-> uint8 [frames, height, width, 3], a function of the arguments alone."""
    random = np.random.default_rng(seed)
    hue, side = random.uniform(), film.side
    coarse = random.uniform(1.1, 2.0) * side
    background = _texture(random, film, hue, low=0.28, high=0.72, saturation=0.42, coarseness=coarse)
    kind, other_kind = random.integers(len(SHAPES), size=2)
    own = _texture(random, film, hue + random.uniform(0.35, 0.65), 0.6, 1.0, saturation=0.72, coarseness=0.55 * side)
    other = _texture(random, film, hue + random.uniform(0.15, 0.3), 0.55, 0.95, saturation=0.55, coarseness=0.3 * side)
    start, phase = random.uniform(size=4), random.uniform()
    speed, tempo = random.uniform(*SPEED), random.uniform(*TEMPO)
    radius, other_radius = random.uniform(0.25, 0.33) * side, random.uniform(0.1, 0.15) * side
    other_start, drift = random.uniform(size=3), random.uniform(-0.25, 0.25, size=3)
    frames = np.empty((film.frames, film.height, film.width, 3), dtype=np.uint8)
    for times in np.array_split(np.arange(film.frames), -(-film.frames * background.size // PIECE)):
        t = times / float(film.rate)
        shift = MOTIONS[motion](speed * t, tempo * t + phase)
        pictures = np.repeat(background[None], len(t), axis=0)
        x, y = other_start[0] * film.width + drift[0] * side * t, other_start[1] * film.height + drift[1] * side * t
        _paint(pictures, other, x, y, other_radius + 0 * t, 2 * np.pi * (other_start[2] + drift[2] * t), SHAPES[other_kind])
        x, y = start[0] * film.width + shift.right * side + 0 * t, start[1] * film.height + shift.down * side + 0 * t
        swollen = radius * (1 + SWELL * np.sin(2 * np.pi * (start[3] + shift.swell + 0 * t)))
        _paint(pictures, own, x, y, swollen, 2 * np.pi * (start[2] + shift.turns + 0 * t), SHAPES[kind])
        frames[times] = np.rint(pictures * 255)
    return frames


def write_clip(path: Path, frames: np.ndarray, rate: Fraction) -> None:
    """uint8 [frames, height, width, 3] and frames a second -> MP4 with H.264, in BT.601 and tagged so, whole or not at all.
    Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two at once must not disturb each other
    encode(temporary, frames, rate, crf="18", preset="veryfast", x264_params=f"{ASM}open-gop=0")
    temporary.replace(path)


def _texture(
    random: np.random.Generator, film: Film, hue: float, low: float, high: float, saturation: float, coarseness: float
) -> np.ndarray:
    """Light that falls from one side, and waves of about `coarseness` pixels along it, between two neighbouring colours: float
    [height, width, 3] in 0..1.

    The light reaches across the picture, so that what is hidden can be told from what is seen, and a small model learns
    something in minutes. (Of waves of 20 to 100 pixels from all sides it had learned nothing after 400 steps: loss 0.987. Of
    these, 0.863 after 250.)
    """
    y, x = np.mgrid[: film.height, : film.width]
    side = random.uniform(0, 2 * np.pi)
    light = ((x - film.width / 2) * np.cos(side) + (y - film.height / 2) * np.sin(side)) / (0.3 * film.side)
    waves = np.zeros((film.height, film.width))
    for _ in range(3):
        direction, phase = side + random.normal(0, 0.4), random.uniform(0, 2 * np.pi)
        length = coarseness * random.uniform(0.8, 1.6)
        waves += np.sin((x * np.cos(direction) + y * np.sin(direction)) * (2 * np.pi / length) + phase)
    share = (0.5 + 0.5 * np.tanh(0.6 * light + 0.25 * waves))[..., None]
    dark = np.array(colorsys.hsv_to_rgb(hue % 1, saturation, low))
    bright = np.array(colorsys.hsv_to_rgb((hue + 0.09) % 1, 0.8 * saturation, high))
    return (dark + share * (bright - dark)).astype(np.float32)


# signed distance (about, in radii) of a point to the outline of a shape of radius 1 around the origin; negative inside
SHAPES: tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda x, y: np.hypot(x, y) - 1,  # disc
    lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.8,  # square
    lambda x, y: np.maximum(np.abs(x) * 0.866 + y * 0.5, -y) - 0.55,  # triangle
    lambda x, y: np.hypot(x, y) - 0.72 - 0.28 * np.cos(5 * np.arctan2(y, x)),  # star
    lambda x, y: np.abs(np.hypot(x, y) - 0.7) - 0.3,  # ring
)


def _paint(
    pictures: np.ndarray,
    texture: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
    radius: np.ndarray,
    angle: np.ndarray,
    shape: Callable[..., np.ndarray],
) -> None:
    """Blend a shape into float32 [n, height, width, 3], in each at a place (n,) of its own, its texture moving and turning with
    it, with antialiased edges. What leaves on one side comes in on the other.

    All pictures at once: one by one, a clip of 40 frames of 64 px took 30 ms, and most of that were calls of NumPy.
    """
    height, width = pictures.shape[1:3]
    reach = min(int(radius.max() * 1.3) + 2, (min(height, width) - 1) // 2)
    span = np.arange(-reach, reach + 1)
    rows, columns = np.floor(y).astype(int)[:, None] + span, np.floor(x).astype(int)[:, None] + span
    across, down = (columns - x[:, None]).astype(np.float32)[:, None], (rows - y[:, None]).astype(np.float32)[..., None]
    cosine, sine, radius = (part.astype(np.float32)[:, None, None] for part in (np.cos(angle), np.sin(angle), radius))
    own_x, own_y = (across * cosine + down * sine) / radius, (down * cosine - across * sine) / radius
    distance = shape(own_x, own_y) * radius  # pixels
    place = np.nonzero(distance < 0.5)
    distance = distance[place]
    cover = np.clip(0.5 - distance, 0, 1)[:, None]
    rim = np.clip(1.5 + distance / 2, 0, 1)[:, None]  # darker towards the edge: sets it off from any background
    scale = 0.23 * min(height, width)
    column = np.clip(width / 2 + own_x[place] * scale, 0, width - 1.001)
    row = np.clip(height / 2 + own_y[place] * scale, 0, height - 1.001)
    colour = _sample(texture, column, row) * (1 - 0.55 * rim)
    number, down_by, across_by = place
    pixels = number, rows[number, down_by] % height, columns[number, across_by] % width
    pictures[pixels] += cover * (colour - pictures[pixels])


def _sample(texture: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Bilinear: texture that turns with its shape must not flicker."""
    c, r = column.astype(int), row.astype(int)
    fc, fr = (column - c)[:, None], (row - r)[:, None]
    upper = texture[r, c] * (1 - fc) + texture[r, c + 1] * fc
    lower = texture[r + 1, c] * (1 - fc) + texture[r + 1, c + 1] * fc
    return upper * (1 - fr) + lower * fr
