"""Which clips of a dataset are taken: those of the recipe's split. A clip without a split counts as one for training."""

import hashlib

import numpy as np

from pipeline.storage.dataset import Dataset

ALL, TRAINING = "all", "train"
AT_ONCE = 1 << 20  # clips that are looked at, so that memory does not grow with them


def checked_split(split: object) -> str:
    """Names, with commas between them or in a sequence -> in one form, so that equal choices are equal: sorted, "a,b"."""
    names = split.split(",") if isinstance(split, str) else list(map(str, split))  # type: ignore[call-overload]
    names = sorted({name.strip() for name in names} - {""})
    if not names:
        raise ValueError(f"split {split!r} names none; give names such as 'train' or 'train,val', or 'all' for every clip")
    return ALL if ALL in names else ",".join(names)


def clips_of_split(manifest: Dataset, split: str) -> np.ndarray | None:
    """Whether each clip is taken -> bool (N,), or None where all are. `split` is in the form of `checked_split`.

    Raises ValueError, with the splits that there are, for one that the dataset does not have.
    """
    if split == ALL or not len(manifest):
        return None
    wanted, have = split.split(","), _counts(manifest)
    if unknown := [name for name in wanted if not have.get(name) and not (name == TRAINING and have.get(""))]:
        listed = ", ".join(f"{name or 'without a split, which is for train'} ({n} clips)" for name, n in have.items())
        raise ValueError(
            f"split {split!r}: {manifest.place} has no clip of {' and '.join(map(repr, unknown))}; it has {listed}; "
            "'all' takes every clip"
        )
    if TRAINING in wanted:
        wanted.append("")
    if sum(have.get(name, 0) for name in wanted) == len(manifest):
        return None
    return np.isin(manifest.split, [_code(manifest, name) for name in wanted])


def rows_of_split(manifest: Dataset, split: str) -> np.ndarray:
    """The rows of those clips, ascending -> int64 (n,). Raises ValueError as `clips_of_split` does."""
    taken = clips_of_split(manifest, split)
    return np.arange(len(manifest)) if taken is None else np.flatnonzero(taken)


def split_digest(manifest: Dataset, split: str) -> str:
    """Says which clips are taken, for a state: the dataset's fingerprint does not; "" where all are."""
    taken = clips_of_split(manifest, split)
    return "" if taken is None else hashlib.blake2b(np.packbits(taken).tobytes(), digest_size=16).hexdigest()


def count_clips(manifest: Dataset, split: str) -> int:
    """That are taken."""
    taken = clips_of_split(manifest, split)
    return len(manifest) if taken is None else int(taken.sum())


def describe_split(manifest: Dataset, split: str) -> str:
    """For people: "80 clips of split train (left out: 8 val)". Raises ValueError as `clips_of_split` does."""
    taken = clips_of_split(manifest, split)
    if split == ALL:
        return f"{len(manifest):,} clips, all splits"
    if taken is None:
        return f"{len(manifest):,} clips of split {split} (none left out)"
    left = ", ".join(f"{n:,} {name or 'without a split'}" for name, n in _counts(manifest, ~taken).items())
    return f"{taken.sum():,} clips of split {split} (left out: {left})"


def _counts(manifest: Dataset, among: np.ndarray | slice = np.s_[:]) -> dict[str, int]:
    """Clips of each split that has some; "" for those without one. 10 million: 6 ms of a core, and no memory."""
    codes, counts = manifest.split[among], {}
    for name in ("", *manifest.splits):
        code = _code(manifest, name)
        parts = (codes[begin : begin + AT_ONCE] == code for begin in range(0, len(codes), AT_ONCE))
        counts[name] = sum(int(np.count_nonzero(part)) for part in parts)
    return {name: number for name, number in counts.items() if number}


def _code(manifest: Dataset, split: str) -> int:
    """As in `manifest.split`; of one that no clip has, a number that is not there."""
    return -1 if not split else manifest.splits.index(split) if split in manifest.splits else -2
