"""From views to figures, and to what `evaluate` leaves behind."""

import numpy as np
import pytest
import torch

from train.accuracy.accuracy import Accuracy, places
from train.accuracy.scores import ClipScores


def test_a_view_counts_once_whichever_rank_brings_it() -> None:
    scores, views = ClipScores(), torch.randn(12, 3, dtype=torch.float64).softmax(-1).numpy()
    with pytest.raises(ValueError, match="no clip"):
        scores.merged()
    scores.add("a", 2, range(4), views[:4])
    scores.add("b", -1, [(1, 10)], views[4:5])
    scores.add("a", 2, range(2, 12), views[2:])  # padding, or another rank
    scores.add("b", -1, [(11, 0)], views[5:6])  # read alike when written together
    merged = scores.merged()
    assert merged.keys == ["a", "b"] and merged.labels.tolist() == [2, -1] and merged.views.tolist() == [12, 2]
    assert np.allclose(merged.probabilities, [views.mean(0), views[4:6].mean(0)], atol=1e-15)


def test_figures_are_of_labelled_clips_and_a_collapsed_model_is_not_right() -> None:
    labels = np.array([0, 0, 0, 2, 6, -1])
    scores = np.zeros((6, 7))
    scores[1, 1], scores[3, 2], scores[5, 4] = 1, 1, 1
    assert places(torch.from_numpy(scores), torch.from_numpy(labels)).tolist()[:5] == [0, 1, 0, 0, 6]
    found = Accuracy.of_scores(scores, labels)
    assert found.num_clips == 5 and found.figures() == {"top1": 3 / 5, "top5": 4 / 5, "mean_class": (2 / 3 + 0 + 1 + 0) / 4}
    assert Accuracy.of_scores(scores[:, :5], np.minimum(labels, 4)).top5 is None, "of five classes it would be 100 %"
    nothing = Accuracy.of_scores(scores, np.full(6, -1))
    assert np.isnan([*nothing.figures().values()]).all() and nothing.num_clips == 0
