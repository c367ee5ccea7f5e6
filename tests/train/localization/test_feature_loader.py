"""Batches of features: the same on any number of ranks and after any restart, whatever can be read."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.localizer_config import LocalizerConfig
from model.segment_losses import running_mean
from pipeline import keyed
from pipeline.sampling import SamplingRecipe
from tests.train.localization.made_features import DIM, write_features
from train.localization import feature_loader
from train.localization.feature_loader import FeatureLoader, Targets
from train.localization.feature_set import FeatureSet
from train.localization.parts_of_videos import part_of
from train.localization.sequences import SequenceConfig

MODEL = LocalizerConfig(input_dim=DIM, num_steps=64, num_levels=3, windows=(5,))
RECIPE = SamplingRecipe(views_per_step=4, views_per_clip=1, masks=None, seed=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    features, annotations = write_features(tmp_path_factory.mktemp("made"), {"train": 11})
    return FeatureSet(annotations, features, MODEL, SequenceConfig())


def loader(made: FeatureSet, rank: int = 0, ranks: int = 1, clips: int = 4, **how: Any) -> FeatureLoader:
    targets = Targets(radius=1.5, first_norm=100.0)
    how = {"device": torch.device("cpu"), **how}
    return FeatureLoader(made, RECIPE, targets, rank=rank, world_size=ranks, clips_per_batch=clips, **how)


def test_batches_are_the_same_on_any_ranks_and_after_a_restart(made: FeatureSet) -> None:
    whole = loader(made)
    assert whole.steps_per_epoch == 2
    batches = [next(whole) for _ in range(5)]
    assert [(batch.epoch, batch.step) for batch in batches] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    halves = [loader(made, rank, 2, 1) for rank in range(2)]
    for batch in batches[:3]:
        for _ in range(2):
            for half in halves:
                part = next(half)
                at = int((batch.positions == part.positions[0]).nonzero())
                for name in ("features", "mask", "counted", "classes", "distances"):
                    assert torch.equal(getattr(part, name)[0], getattr(batch, name)[at]), name
                assert torch.equal(part.normaliser, batch.normaliser) and part.rows[0] == batch.rows[at]
    assert halves[0].keys(0, 1) + halves[1].keys(0, 1) == [
        made.clip(int(row)).key for row in (*batches[1].rows[::2], *batches[1].rows[1::2])
    ]
    again = loader(made, state=halves[1].state())
    for batch in batches[3:]:
        other = next(again)
        assert torch.equal(other.features, batch.features) and torch.equal(other.normaliser, batch.normaliser)
    state = again.state()
    for each in (whole, again, *halves):
        each.close()
    with pytest.raises(ValueError, match="are not those that the run began with"):
        loader(made, state=state | {"dataset": "other"})


def test_its_threads_are_on_its_gpu(made: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what CUDA would be told, by the thread that tells it."""
    here, pinned = threading.local(), list[Any]()

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(getattr(here, "device", None))
        return tensor

    monkeypatch.setattr(torch.cuda, "set_device", lambda device: setattr(here, "device", device))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    whole = loader(made, device=torch.device("cuda", 1))
    next(whole)
    whole.close()
    assert pinned and set(pinned) == {torch.device("cuda", 1)} and not hasattr(here, "device"), "this thread stays where it is"


def test_the_normaliser_is_a_running_mean_of_whole_steps(made: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, mean = loader(made), 100.0
    for _ in range(4):
        batch = next(whole)
        positives = int(((batch.classes.sum(2) > 0) & batch.counted).sum())
        assert positives > 0
        mean = running_mean(mean, positives)
        assert float(batch.normaliser) == pytest.approx(mean, rel=1e-6)
    monkeypatch.setattr(feature_loader, "MEMORY", 3)
    late = loader(made).normaliser(40)
    assert late == loader(made).normaliser(40) and late < 100
    whole.close()


def test_parts_of_videos(made: FeatureSet) -> None:
    """Within the video, of the lengths that are asked for, with an action where there is one."""
    segments = torch.tensor([[300.0, 310.0]])
    keys = [keyed.mix(1, n) for n in range(200)]
    parts = [part_of(key, 1000, 64, segments, 2.0, SequenceConfig()) for key in keys]
    assert all(length == 64 and 0 <= first <= 1000 - 64 for first, length in parts)
    shown = [first <= 305 and first + 64 >= 305 - 2 for first, _ in parts]
    assert np.mean(shown) > 0.97, "200 trials find it"
    assert len({first for first, _ in parts}) > 30
    short = [part_of(key, 50, 64, segments[:0], 2.0, SequenceConfig()) for key in keys]
    assert {length for _, length in short} == {45, 46, 47, 48, 49, 50} and max(first for first, _ in short) == 5
    assert part_of(keys[0], 50, 64, segments, 2.0, SequenceConfig(crop=None)) == (0, 50)
    assert part_of(keys[0], 1, 64, segments, 2.0, SequenceConfig()) == (0, 1)


def test_a_video_that_cannot_be_read_counts_for_nothing_and_is_told(tmp_path: Path) -> None:
    features, annotations = write_features(tmp_path, {"train": 4})
    made = FeatureSet(annotations, features, MODEL, replace(SequenceConfig(), crop=None))
    bad = np.load(features / "video_train_0002.npy")
    bad[:] = np.nan
    np.save(features / "video_train_0002.npy", bad)
    whole = loader(made)
    batch = next(whole)
    lost = [made.clip(int(row)).key == "video_train_0002" for row in batch.rows]
    assert sum(lost) == 1 and batch.counted.any(1).tolist() == [not each for each in lost]
    assert whole.num_failures == 1 and "not finite" in whole.failures[0].detail
    assert batch.features.isfinite().all()
    with pytest.raises(feature_loader.LoaderError, match="17 parts of videos could not be read"):
        for _ in range(20):
            next(whole)
    whole.close()
