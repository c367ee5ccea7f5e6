"""What one sample draws, together: no two draws hang on each other, in the arithmetic of new runs; older runs keep theirs."""

import hashlib
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import keyed
from pipeline.sampling import SamplingRecipe, masking, sample_clips, sample_masks
from pipeline.sampling.crops import multi_scale_crop
from pipeline.sampling.frames import training_frames
from pipeline.sampling.masks.running_cell import patterns
from pipeline.sampling.masks.tube import tube_masks
from pipeline.sampling.order import Order
from pipeline.storage.manifest import Manifest

RECIPE = SamplingRecipe(views_per_step=8, views_per_clip=2)
POSITIONS = np.arange(4)
WAYS = [
    {},
    {"crop": "random_resized"},
    {"fresh_windows": True},
    {"temporal": "tsn"},
    {"shuffle": "window", "lanes": 4, "window": 2},
    {"mixture": (("generated", 2.0),)},
    {"masks": "random", "decoder_masks": "random"},
    {"masks": "multi-block", "decoder_masks": "frame"},
    {"masks": "frame"},
]


def drawn(manifest: Manifest, recipe: SamplingRecipe, monkeypatch: pytest.MonkeyPatch, position: int = 1) -> Counter[int]:
    """Every key that is made on the way to the sample of one position, with a clip that failed there, and how often."""
    keys: dict[tuple[bytes, ...], np.ndarray] = {}
    mix = keyed.mix

    def note(*parts: int | np.ndarray) -> np.ndarray:
        made = mix(*parts)
        keys[tuple(np.asarray(part).tobytes() for part in parts)] = made  # one call made twice is one draw
        return made

    with monkeypatch.context() as patch:
        patch.setattr(keyed, "mix", note)
        sample_clips(manifest, recipe, 2, np.array([position]), np.array([1]))
        sample_masks(recipe, 2, np.array([position]))
    return Counter(itertools.chain.from_iterable(made.reshape(-1).tolist() for made in keys.values()))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: ",".join(way) or "default")
def test_no_two_draws_of_a_sample_have_one_key(dataset: Path, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    keys = drawn(Manifest(dataset), replace(RECIPE, **way), monkeypatch)
    assert len(keys) > (30 if "masks" in way else 300) and max(keys.values()) == 1
    if "masks" in way:
        return
    # what was wrong with the first arithmetic, of both views: the phase's key is tube 5's
    assert sorted(drawn(Manifest(dataset), replace(RECIPE, arithmetic=1, **way), monkeypatch).values())[-3:] == [1, 2, 2]


def draws_of(n: int, recipe: SamplingRecipe) -> dict[str, np.ndarray]:
    """{name: (n,) small integers}, everything that a sample draws, by what comes out of it."""
    keys = keyed.mix(recipe.seed, keyed.MASK, 0, np.arange(n), 0)
    hidden = tube_masks(keys, recipe.grid, recipe.mask_ratio, recipe.arithmetic).reshape(n, recipe.grid[0], -1)[:, 0]
    _, decoded, _ = masking.mask_indices(keys, recipe.grid, recipe.mask_ratio, recipe.decoder_mask_ratio, recipe.arithmetic)
    kept = np.sort(decoded, axis=1)
    phases = [np.flatnonzero((kept == np.flatnonzero(~mask)).all(1)) for mask in patterns(recipe.grid, 0.5)]
    phase = np.empty(n, np.int64)
    for number, views in enumerate(phases):
        phase[views] = number
    assert sum(map(len, phases)) == n
    crop_keys = keyed.mix(recipe.seed, keyed.CROP, 0, np.arange(n), 0)
    boxes = multi_scale_crop(crop_keys, np.full(n, 340), np.full(n, 256), (224, 224))
    frame_keys = keyed.mix(recipe.seed, keyed.FRAMES, 0, np.arange(n))
    starts = training_frames(frame_keys, np.full(n, 68), 16, np.full(n, 4), "stride")[:, 0]
    places = [keyed.permute(np.arange(n) % 12, 12, keyed.mix(recipe.seed, keyed.WINDOW, np.arange(n), 0, 0))]
    values = {"phase": phase, "shape": boxes[:, 2] * 1000 + boxes[:, 3], "left": boxes[:, 0], "top": boxes[:, 1]}
    values |= {"start": starts, "place": places[0]}
    return {name: np.unique(value, return_inverse=True)[1] for name, value in values.items()} | {
        f"tube {cell}": hidden[:, cell].astype(np.int64) for cell in range(hidden.shape[1])
    }


def dependence(a: np.ndarray, b: np.ndarray) -> float:
    """Two discrete draws (n,) -> how many standard deviations their table's chi² lies over what independence gives."""
    table = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).reshape(a.max() + 1, -1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    chi2 = ((table - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    degrees = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float((chi2 - degrees) / np.sqrt(2 * degrees))


def test_draws_are_independent_in_pairs() -> None:
    """Of 20,000 views. The box's corner hangs on its shape, as it must, and a tube's hiding on the others'."""
    draws = draws_of(20_000, RECIPE)
    tubes = [name for name in draws if name.startswith("tube")]
    others = ["phase", "shape", "start", "place"]
    pairs = [*itertools.combinations(others, 2), *itertools.product([*others, "left", "top"], tubes), ("left", "phase")]
    found = {pair: dependence(draws[pair[0]], draws[pair[1]]) for pair in pairs}
    worst = max(found, key=lambda pair: found[pair])
    assert found[worst] < 7, (worst, found[worst])  # of 1,183 pairs; the first arithmetic's worst is 2,787


def test_the_first_arithmetic_is_as_it_was() -> None:
    """The column of cell (0, 5) is seen in phase 3 only."""
    draws = draws_of(20_000, replace(RECIPE, arithmetic=1))
    seen = draws["tube 5"] == 0
    assert seen.sum() == 2066 and set(draws["phase"][seen]) == {3}
    assert dependence(draws["phase"], draws["tube 5"]) > 1000


@pytest.mark.parametrize(
    ("way", "golden"),
    [
        ({"arithmetic": 1}, "7d77aa6d3a3af192"),
        ({}, "3b0818229594f064"),
        ({"masks": "random"}, "aaed36224ca77127"),
        ({"masks": "frame"}, "120f430b96bc3c99"),
        ({"masks": "multi-block"}, "5322e1764ee60368"),
        ({"decoder_masks": "random"}, "092321481136f293"),
        ({"decoder_masks": "frame"}, "f7fc6bc9056abe72"),
    ],
)
def test_golden_masks(way: dict[str, Any], golden: str) -> None:
    digest = hashlib.blake2b(digest_size=8)
    for array in sample_masks(replace(RECIPE, **way), 3, POSITIONS):
        digest.update(array.tobytes())
    assert digest.hexdigest() == golden


@pytest.mark.parametrize(
    ("arithmetic", "golden"),
    [
        (1, [9, 23, 11, 22, 2, 21, 0, 12, 1, 14, 10, 13, 6, 16, 7, 15, 4, 17, 3, 19, 8, 20, 5, 18]),
        (2, [11, 23, 1, 21, 10, 22, 9, 15, 2, 13, 0, 16, 6, 12, 7, 14, 5, 17, 4, 20, 3, 18, 8, 19]),
    ],
)
def test_golden_windows(arithmetic: int, golden: list[int]) -> None:
    order = Order(replace(RECIPE, shuffle="window", lanes=2, window=6, arithmetic=arithmetic), 24)
    assert order.rows(1, np.arange(24)).tolist() == golden


def test_an_unknown_arithmetic_is_refused() -> None:
    with pytest.raises(ValueError, match="arithmetic 3 is not known; allowed are 1, 2"):
        replace(RECIPE, arithmetic=3)
