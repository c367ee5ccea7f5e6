"""Choosing a number of videos by a seed, so that a folder that grows changes the choice little."""

import hashlib
from collections.abc import Sequence

import numpy as np


def ranks(names: Sequence[bytes], seed: int) -> np.ndarray:
    """Names -> uint64 numbers, evenly spread, that depend on nothing but seed and name. About 1 s for a million.

    Who takes the k names with the smallest numbers has chosen k at random, whatever the order of the list; and when names
    are added, each of those chosen before stays unless a new one with a smaller number takes its place: of k among n, the
    share n / (n + m) is expected to stay when m are added. (A shuffle by position would choose all anew.)
    """
    salt = (seed & (1 << 64) - 1).to_bytes(8, "little")
    return np.frombuffer(b"".join([hashlib.blake2b(name, digest_size=8, salt=salt).digest() for name in names]), "<u8")


def choose(names: Sequence[bytes], number: int, seed: int) -> np.ndarray:
    """Places of `number` of the names (of all, if there are not more), ascending. int64."""
    if number >= len(names):
        return np.arange(len(names))
    return np.sort(np.argsort(ranks(names, seed), kind="stable")[:number])


def check_number(name: str, number: int | None) -> None:
    """Raises ValueError for a number of videos that cannot be asked for."""
    if number is not None and number < 1:
        raise ValueError(f"source {name}: number {number} of videos to choose must be at least 1; leave it out to take all")
