"""Which files of a folder are the frames of a video, and in what order. Light, because workers import it."""

import os
import re
from collections.abc import Iterable

IMAGES = (b".jpg", b".jpeg", b".png", b".webp")  # what image_folder.py can read
_DIGITS = re.compile(rb"(\d+)")
_LAST_NUMBER = re.compile(rb"(\d+)\D*\Z")


def natural_key(name: bytes) -> tuple[list[bytes | int], bytes]:
    """Sort key: runs of digits count as numbers; names that are equal so (`1.jpg`, `01.jpg`) go by their bytes."""
    parts: list[bytes | int] = list(_DIGITS.split(name))
    parts[1::2] = map(int, parts[1::2])
    return parts, name


def image_names(names: Iterable[bytes]) -> list[bytes]:
    """The names in a folder -> its frames, in order: `first_frame` and `num_images` of a request are places in this list.

    Left out are files that are no images, hidden ones (`._img_00001.jpg` of macOS), optical flow that lies beside the frames
    (`flow_x_00001.jpg`), and the second of two that differ in nothing but the extension.
    """
    images = (name for name in names if name.lower().endswith(IMAGES) and not name.startswith((b".", b"flow_")))
    stems = set()
    frames = []
    for name in sorted(images, key=natural_key):
        if (stem := os.path.splitext(name)[0]) not in stems:
            stems.add(stem)
            frames.append(name)
    return frames


def image_number(name: bytes) -> int | None:
    """`img_00012.jpg` -> 12; None for a name without a number."""
    found = _LAST_NUMBER.search(os.path.splitext(name)[0])
    return int(found[1]) if found else None
