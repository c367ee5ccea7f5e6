"""Keyed randomness: pure functions of integers, the same on every machine and with every version of NumPy.

Everything random in a batch comes from here: a draw is a hash of (seed, epoch, position, view, purpose), so it needs no
state and no order of evaluation. NumPy's own generators may change their streams between versions; this one has golden
values in a test. The mixer is splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import numpy as np

# purposes: what a draw is for, mixed into its key so that draws for different ends are independent
ORDER, FRAMES, CROP, MASK, DECODER_MASK, SUBSTITUTE = range(1, 7)

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
FEISTEL_ROUNDS = 6


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, element by element: uint64 -> uint64, bijective."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _M1
        x = (x ^ (x >> np.uint64(27))) * _M2
        return x ^ (x >> np.uint64(31))


def mix(*parts: int | np.ndarray) -> np.ndarray:
    """Hash integers (scalars or arrays that broadcast) in order -> uint64 array."""
    state: np.ndarray = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = splitmix64((state + _GAMMA) ^ splitmix64(np.asarray(part).astype(np.uint64) + _GAMMA))
    return state


def below(key: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """Keys -> integers uniform in [0, n), 0 < n < 2³²: the key's upper half times n, shifted. int64."""
    return ((key >> np.uint64(32)) * np.asarray(n).astype(np.uint64) >> np.uint64(32)).astype(np.int64)


def permute(index: np.ndarray, n: int, key: int | np.ndarray) -> np.ndarray:
    """Indices in [0, n) -> their places in the permutation of [0, n) that `key` names. int64.

    A Feistel network over the next even power of two, walked until it lands inside [0, n): bijective for every n, in O(1)
    memory, so any position of a billion-clip epoch costs the same few operations.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    low, shift = np.uint64((1 << half) - 1), np.uint64(half)
    rounds = [mix(key, r) for r in range(FEISTEL_ROUNDS)]
    result = np.asarray(index).astype(np.uint64)
    pending = np.ones(result.shape, bool)
    while pending.any():
        x = result[pending]
        left, right = x >> shift, x & low
        for round_key in rounds:
            left, right = right, left ^ (splitmix64(right ^ round_key) & low)
        result[pending] = left << shift | right
        pending = result >= np.uint64(n)
    return result.astype(np.int64)
