"""RandAugment's plans as arithmetic: which operations become of a view, in which order, how strong. One plan serves all of its
frames. The "increasing" set of timm, whose notation this reads, too; n views.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from pipeline import keyed

OPERATIONS = (  # in timm's order
    *("AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"),
    *("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing"),
    *("ShearX", "ShearY", "TranslateXRel", "TranslateYRel"),
)
APPLIED = 0.5  # probability of each operation that was drawn
STRONGEST = 10  # of the magnitudes, to which they are clipped
MOST = 16  # layers
WHICH, WHETHER, LEVEL, SIGN = range(4)  # purposes of the draws from one view's key
ALLOWED = (
    f'allowed is what timm calls "rand-mM-nN-mstdS-inc1": M 0 to {STRONGEST}, the mean magnitude; N 1 to {MOST}, the '
    f"operations of a view; S 0 to {STRONGEST}, the magnitude's deviation (0, if left out); inc1: all grow with the magnitude"
)


@dataclass(frozen=True, slots=True)
class RandAugment:
    """How plans are drawn."""

    magnitude: float
    """Mean of the normal distribution of an operation's magnitude, which is clipped to 0 .. 10."""
    layers: int
    """Operations drawn of a view, with replacement."""
    std: float
    """Deviation of the magnitude."""

    @staticmethod
    def parse(text: str) -> "RandAugment":
        """ "rand-m7-n4-mstd0.5-inc1", in any order. Raises ValueError for anything but this kind, with what is allowed."""
        head, *parts = text.split("-")
        found = [re.fullmatch(r"(m|n|inc)(\d{1,9})|(mstd)(\d{1,9}(?:\.\d*)?)", part) for part in parts]
        values = {match[1] or match[3]: float(match[2] or match[4]) for match in found if match}
        if head != "rand" or len(values) < len(parts) or not {"m", "n"} <= values.keys() or values.get("inc") != 1:
            raise ValueError(f"RandAugment {text!r} is not known; {ALLOWED}")
        how = RandAugment(values["m"], int(values["n"]), values.get("mstd", 0.0))
        if how.magnitude > STRONGEST or not 1 <= how.layers <= MOST or how.std > STRONGEST:
            raise ValueError(f"RandAugment {text!r} is out of bounds; {ALLOWED}")
        return how


def plans(keys: np.ndarray, how: RandAugment) -> np.ndarray:
    """Keys (n,) -> float64 (n, layers, 2), in the order of application: index into OPERATIONS, or -1 where none is applied, and
    its argument, 0 where it has none. For arguments see `arguments`."""
    layers, keys = np.arange(how.layers), keys[:, None]
    which = keyed.below(keyed.mix(keys, WHICH, layers), len(OPERATIONS))
    u, v = keyed.unit(keyed.mix(keys[..., None], LEVEL, layers[:, None], np.arange(2))).transpose(2, 0, 1)
    # rounded, because the last bits of a logarithm and a cosine differ between machines
    normal = np.round(np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * v), 9)
    magnitude = np.clip(how.magnitude + how.std * normal, 0, STRONGEST)
    first = keyed.unit(keyed.mix(keys, SIGN, layers)) < 0.5
    argument = np.zeros(which.shape)
    for index, operation in enumerate(OPERATIONS):
        drawn = which == index
        if found := arguments(operation, magnitude[drawn]):
            argument[drawn] = np.where(first[drawn], found[0], found[-1])
    applied = keyed.unit(keyed.mix(keys, WHETHER, layers)) < APPLIED
    return np.stack([np.where(applied, which, -1), np.where(applied, argument, 0)], axis=2)


def arguments(operation: str, magnitude: float | np.ndarray) -> tuple[np.ndarray, ...]:
    """Magnitudes of 0 to 10, of any shape -> what they can give, of that shape: nothing, one argument, or two equally likely.

    Rotate: degrees, counter-clockwise. Posterize: the bits that are kept, 4 to 0; of 0 bits nothing is left but black (Pillow
    13 refuses them, those before it gave black). Solarize: the level from which on a pixel is inverted; SolarizeAdd: what is
    added below 128. Color, Contrast, Brightness, Sharpness: the weight of the picture against its degenerate (grey, mean,
    black, smooth), 0.1 to 1.9. Shear: pixels to the side by pixel; Translate: share of the side.
    """
    level = np.asarray(magnitude, float) / STRONGEST
    match operation:
        case "AutoContrast" | "Equalize" | "Invert":
            return ()
        case "PosterizeIncreasing":
            return (4 - np.floor(level * 4),)
        case "SolarizeIncreasing":
            return (256 - np.floor(level * 256),)
        case "SolarizeAdd":
            return (np.floor(level * 110),)
        case "ColorIncreasing" | "ContrastIncreasing" | "BrightnessIncreasing" | "SharpnessIncreasing":
            return np.maximum(0.1, 1 - level * 0.9), 1 + level * 0.9
        case "Rotate":
            return -(level * 30), level * 30
        case "ShearX" | "ShearY":
            return -(level * 0.3), level * 0.3
        case "TranslateXRel" | "TranslateYRel":
            return -(level * 0.45), level * 0.45
    raise AssertionError(operation)


def source_of(operation: str, argument: float, width: int, height: int) -> tuple[float, ...]:
    """Where the pixel at (x, y) comes from: (a, b, c, d, e, f) of (a x + b y + c, d x + e y + f), as timm hands them to PIL."""
    match operation:
        case "Rotate":  # as PIL's Image.rotate
            angle = -math.radians(argument % 360.0)
            cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
            x, y = width / 2, height / 2
            return cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y
        case "ShearX":
            return 1, argument, 0, 0, 1, 0
        case "ShearY":
            return 1, 0, 0, argument, 1, 0
        case "TranslateXRel":
            return 1, 0, argument * width, 0, 1, 0
        case "TranslateYRel":
            return 1, 0, 0, 0, 1, argument * height
    raise AssertionError(operation)
