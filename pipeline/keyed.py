"""Keyed randomness: pure functions of integers, the same on every machine and with every version of NumPy.

Everything random in a batch comes from here: a draw is a hash of (seed, epoch, position, view, purpose), so it needs no
state and no order of evaluation. NumPy's own generators may change their streams between versions; this one has golden
values in a test. The mixer is splitmix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
"""

import numpy as np

# purposes: what a draw is for, mixed into its key so that draws for different ends are independent. No two draws from one key
# may have one purpose: arithmetic 1 took the noise of tube i from mix(key, i), and so its phase was tube 5's noise.
ORDER, FRAMES, CROP, MASK, DECODER_MASK, SUBSTITUTE, PASS, LANE, WINDOW, TUBES, RANKING, HIDDEN = range(1, 13)
DEPTH, DROPOUT, MIXUP, ERASING, FLIP, RANDAUGMENT, BOXES, CAPTION = range(13, 21)
PART_LENGTH, PART_START = range(31, 33)  # of a sequence of features

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
FEISTEL_ROUNDS = 6
FEISTEL_FROM = 32  # elements; of 16 and fewer, on halves of two bits, some pairs came out 5 to 9 % too often


def splitmix64(x: np.ndarray) -> np.ndarray:
    """The output function of splitmix64, element by element: uint64 -> uint64, bijective. Of scalars, NumPy warns that it
    overflows."""
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


def unit(key: np.ndarray) -> np.ndarray:
    """Keys -> float64 uniform in [0, 1): the key's upper 53 bits."""
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index: int | np.ndarray, n: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """Indices in [0, n) -> their places in the permutation of [0, n) that `key` names; all three broadcast. int64.

    Below 32 elements each permutation is as likely as any other: an index goes to its rank among n draws.
    """
    index, n, key = np.broadcast_arrays(index, n, np.asarray(key).astype(np.uint64))
    places = np.empty(index.shape, np.int64)
    few = n < FEISTEL_FROM
    places[~few] = feistel(index[~few], n[~few], key[~few])
    others = np.arange(n[few].max(initial=0))
    noise = mix(key[few][:, None], RANKING, others)
    own = np.take_along_axis(noise, index[few][:, None].astype(np.int64), axis=1)
    places[few] = ((noise < own) & (others < n[few][:, None])).sum(axis=1)  # equal draws: one pair in 2⁶⁴
    return places


def feistel(index: int | np.ndarray, n: int | np.ndarray, key: int | np.ndarray) -> np.ndarray:
    """As `permute`, which arithmetic 1 took for any n.

    A Feistel network over the next even power of two, walked until it lands inside [0, n): bijective for every n, in O(1)
    memory, so any position of a billion-clip epoch costs the same few operations. Exact for n up to 2⁵³.
    """
    size = np.asarray(n).astype(np.uint64)
    bits = np.frexp((size - np.uint64(1)).astype(np.float64))[1]  # the exponent of a whole number is its bit length
    half = np.maximum(1, (bits + 1) // 2).astype(np.uint64)
    rounds = [mix(key, r) for r in range(FEISTEL_ROUNDS)]
    shape = np.broadcast_shapes(np.shape(index), size.shape, np.shape(key))

    def of_pending(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, shape)[pending] if values.ndim else values

    result = np.broadcast_to(np.asarray(index).astype(np.uint64), shape).copy()
    pending = np.ones(shape, bool)
    with np.errstate(over="ignore"):
        while pending.any():
            x, shift = result[pending], of_pending(half)
            low = (np.uint64(1) << shift) - np.uint64(1)
            left, right = x >> shift, x & low
            for round_key in rounds:
                left, right = right, left ^ (splitmix64(right ^ of_pending(round_key)) & low)
            result[pending] = left << shift | right
            pending = result >= size
    return result.astype(np.int64)


def sample_rows(num_rows: int, sample: int, fingerprint: str) -> np.ndarray:
    """`sample` distinct rows of `num_rows` (all, if there are fewer), ascending; the same for the same fingerprint."""
    if not num_rows:
        return np.empty(0, np.int64)
    return np.sort(permute(np.arange(min(sample, num_rows)), num_rows, int(fingerprint[:16], 16)))
