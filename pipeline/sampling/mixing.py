"""Mixup and CutMix as arithmetic: which share of a view is its partner's, and where.

timm's distributions. But there one draw serves a GPU's whole batch, and would hang on how many there are: here each pair of
views has its own, which both members share. n views; a box is (x, y, width, height) in pixels of a view, int64.
"""

from dataclasses import dataclass

import numpy as np

from pipeline import keyed

TRIES = 32  # of Jöhnk's method, whose tries fail with a probability of at most .22
KIND, SHARE, PLACE = range(3)  # purposes of the draws from one key


@dataclass(frozen=True, slots=True)
class Mixing:
    """What becomes of n views and their labels."""

    partners: np.ndarray  # int64 (n,), views of the same pass
    boxes: np.ndarray  # int64 (n, 4), in which a view is mixed; outside of it stays as it is
    inside: np.ndarray  # float64 (n,), how much of its own a view keeps there: 0 is CutMix
    share: np.ndarray  # float64 (n,), of its own label


def mixing(
    keys: np.ndarray, partners: np.ndarray, height: int, width: int, mixup: float, cutmix: float, switch: float
) -> Mixing:
    """A key (n,) for each view, equal within a pair; the size of a view; the parameters of the two Beta distributions, 0 where
    one is not wanted; the probability of CutMix where both are."""
    cut, share = kinds_and_shares(keys, mixup, cutmix, switch)
    where = keyed.below(keyed.mix(keys[:, None], PLACE, np.arange(2)), np.array([height, width]))
    boxes, remaining = cut_boxes(share, where, height, width)
    boxes = np.where(cut[:, None], boxes, np.array([0, 0, width, height]))
    return Mixing(partners, boxes, np.where(cut, 0.0, share), np.where(cut, remaining, share))


def kinds_and_shares(keys: np.ndarray, mixup: float, cutmix: float, switch: float) -> tuple[np.ndarray, np.ndarray]:
    """Keys (n,) -> whether a view is cut, bool (n,), and the share that it keeps, as drawn, float64 (n,)."""
    assert mixup > 0 or cutmix > 0
    cut = np.full(len(keys), mixup == 0) if 0 in (mixup, cutmix) else keyed.unit(keyed.mix(keys, KIND)) < switch
    drawn = [beta(keyed.mix(keys, SHARE), alpha) if alpha else np.zeros(len(keys)) for alpha in (mixup, cutmix)]
    return cut, np.where(cut, drawn[1], drawn[0])


def cut_boxes(share: np.ndarray, where: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares (n,) that are to remain, centres (n, 2) of (y, x) -> boxes (n, 4), cut off at the edges, and the shares that do
    remain (n,)."""
    size = np.array([height, width])
    sides = (size * np.sqrt(1 - share)[:, None]).astype(np.int64)
    first, last = (np.clip(where + sign * (sides // 2), 0, size) for sign in (-1, 1))
    boxes = np.concatenate([first[:, ::-1], (last - first)[:, ::-1]], axis=1)
    return boxes, 1 - boxes[:, 2] * boxes[:, 3] / (height * width)


def beta(keys: np.ndarray, alpha: float) -> np.ndarray:
    """Keys (n,) -> draws (n,) from Beta(alpha, alpha), float64, rounded to nine digits: the last bits of a logarithm differ
    between machines.

    Over 1/2 by Ulrich's formula ("Computer generation of distributions on the m-sphere", 1984), which rejects nothing; up to
    1/2 by Jöhnk's method, in logarithms.
    """
    if alpha > 0.5:
        u, v = keyed.unit(keyed.mix(keys[:, None], np.arange(2))).T
        return np.round(0.5 + 0.5 * np.sqrt(1 - u ** (2 / (2 * alpha - 1))) * np.cos(2 * np.pi * v), 9)
    uniform = 1 - keyed.unit(keyed.mix(keys[:, None, None], np.arange(2)[:, None], np.arange(TRIES)))
    x, y = np.log(uniform).swapaxes(0, 1) / alpha
    first = (np.exp(x) + np.exp(y) <= 1).argmax(axis=1)
    ratio = np.take_along_axis(y - x, first[:, None], axis=1)[:, 0]
    return np.round(1 / (1 + np.exp(np.clip(ratio, -700, 700))), 9)
