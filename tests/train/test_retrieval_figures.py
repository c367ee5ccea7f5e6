"""Recall, ranks and precision of texts and videos, against what a loop over sorted answers finds."""

import numpy as np
import pytest

from train.accuracy.retrieval import belonging, text_to_video, video_to_text


def test_several_texts_of_a_video_and_several_videos_of_a_text() -> None:
    videos_T, texts = np.array([0, 0, 1, 1, 2, 3]), ["a", "b", "c", "a", "d", "e"]  # "a" is of videos 0 and 1
    belongs_TV = belonging(videos_T, 4, texts)
    assert belongs_TV.astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 0, 1],
    ]
    assert (belonging(videos_T, 4) == (videos_T[:, None] == np.arange(4))).all()
    similarity_TV = np.random.default_rng(0).permutation(24).reshape(6, 4) / 24.0
    found = text_to_video(similarity_TV, belongs_TV)
    ranks, precisions = zip(*map(looped, similarity_TV, belongs_TV), strict=True)
    assert found.mean_rank == pytest.approx(np.mean(ranks)) and found.median_rank == np.median(ranks)
    assert found.recall == {k: pytest.approx(np.mean(np.array(ranks) <= k)) for k in (1, 5, 10)}
    assert found.mean_precision == pytest.approx(np.mean(precisions))
    found = video_to_text(similarity_TV, belongs_TV, videos_T)
    ranks, precisions = zip(*map(looped, similarity_TV.T, belongs_TV.T, [videos_T] * 4), strict=True)
    assert found.mean_rank == pytest.approx(np.mean(ranks)) and found.mean_precision == pytest.approx(np.mean(precisions))
    videos_T, texts = np.array([0, 1, 2, 3]), ["a", "a", "b", "c"]  # a wrong text counts once, whoever has it, too
    similarity_TV = np.array([[0.0, 0, 3, 0], [0, 0, 3, 0], [0, 0, 2, 0], [1, 1, 1, 1]])
    belongs_TV = belonging(videos_T, 4, texts)
    assert video_to_text(similarity_TV, belongs_TV, videos_T, texts).mean_rank == (3 + 3 + 2 + 1) / 4
    assert video_to_text(similarity_TV, belongs_TV, videos_T).mean_rank == (3 + 3 + 3 + 1) / 4
    assert [*found.figures()] == ["r1", "r5", "r10", "median_rank", "mean_rank", "map"]


def looped(similarity_A: np.ndarray, belongs_A: np.ndarray, group_A: np.ndarray | None = None) -> tuple[int, float]:
    """Answers from the best on; of another video only the first text counts."""
    before, shares, own = set[int](), list[float](), 0
    rank = None
    for place, answer in enumerate(np.argsort(-similarity_A), start=1):
        if belongs_A[answer]:
            own += 1
            shares.append(own / place)
            rank = rank or len(before) + 1
        else:
            before.add(int(answer if group_A is None else group_A[answer]))
    assert rank is not None
    return rank, float(np.mean(shares))


def test_equal_similarities_count_against_the_model() -> None:
    alike_TV, videos_T = np.zeros((10, 5), np.float32), np.repeat(np.arange(5), 2)
    belongs_TV = belonging(videos_T, 5)
    for found in (text_to_video(alike_TV, belongs_TV), video_to_text(alike_TV, belongs_TV, videos_T)):
        assert (found.recall[1], found.median_rank, found.mean_rank) == (0.0, 5.0, 5.0)
    assert text_to_video(alike_TV, belongs_TV).mean_precision == pytest.approx(1 / 5)


def test_refused() -> None:
    fine_TV = np.eye(3)
    with pytest.raises(ValueError, match="1 of 3 queries have no answer, such as that in place 2"):
        text_to_video(fine_TV, np.diag([True, True, False]))
    with pytest.raises(ValueError, match="not finite"):
        text_to_video(fine_TV * np.nan, fine_TV > 0)
    with pytest.raises(ValueError, match="nothing that could be looked for"):
        text_to_video(np.zeros((0, 3)), np.zeros((0, 3), bool))
    with pytest.raises(ValueError, match=r"similarities \(3, 3\) and what belongs \(3, 2\)"):
        text_to_video(fine_TV, np.ones((3, 2), bool))
