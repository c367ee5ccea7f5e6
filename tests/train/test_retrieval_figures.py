"""Recall, ranks and precision of texts and videos, against what a loop over sorted answers finds."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import ClassVar

import numpy as np
import pytest

from train.accuracy.retrieval import Belonging, belonging, same_words, text_to_video, video_to_text
from train.retrieval.pairs import WAYS, Pairs


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


def test_some_queries_at_a_time_and_long_texts() -> None:
    texts = ["x" * 50_000, "a", "a\0", "a", "漢字", "b"] * 30  # as an array of NumPy 36 MB, and "a" would be "a\0"
    assert same_words(texts[:6]).tolist() == [0, 1, 2, 1, 3, 4]
    videos_T = np.random.default_rng(0).permutation(np.arange(180) % 40)
    whole_TV = np.array(
        [[any(t == u and w == v for u, w in zip(texts, videos_T, strict=True)) for v in range(40)] for t in texts]
    )
    belonging_of = Belonging(videos_T, 40, texts)
    assert (belonging(videos_T, 40, texts) == whole_TV).all()
    some = np.array([3, 170, 4])
    assert (belonging_of.of_texts(some) == whole_TV[some]).all()
    assert (belonging_of.of_videos(np.array([39, 0])) == whole_TV[:, [39, 0]].T).all()


@pytest.mark.parametrize("ranks", [1, 3])
def test_ranks_share_the_queries(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    texts, videos_T = [f"text {i % 17}" for i in range(20)], np.arange(20) % 7
    features = [random.standard_normal((n, 4)).astype(np.float32) for n in (7, 20)]
    pairs = Pairs(np.arange(7), features[0], texts, videos_T, features[1])
    shares = [Together(rank, ranks) for rank in range(ranks)]
    monkeypatch.setattr("train.retrieval.pairs.AT_ONCE", 30)
    with ThreadPoolExecutor(ranks) as threads:
        found = [*threads.map(pairs.figures, shares)]
    similarity_TV, belongs_TV = features[1] @ features[0].T, belonging(videos_T, 7, texts)
    ways = text_to_video(similarity_TV, belongs_TV), video_to_text(similarity_TV, belongs_TV, videos_T, texts)
    want = {f"{way}_{name}": value for way, each in zip(WAYS, ways, strict=True) for name, value in each.figures().items()}
    want["chance_r1"] = belongs_TV.mean()
    assert all(each == pytest.approx(want) for each in found)


class Together:
    """Stands for `Ranks`, in threads."""

    meeting: ClassVar[Barrier]
    values: ClassVar[dict[int, object]] = {}

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        if not rank:
            Together.meeting = Barrier(world_size)

    def gather(self, value: object) -> list[object]:
        self.values[self.rank] = value
        self.meeting.wait(60)
        found = [self.values[rank] for rank in range(self.world_size)]
        self.meeting.wait(60)
        return found


def test_nothing_is_found_among_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    none, alone = np.empty((0, 4), np.float32), Together(0, 1)
    found = Pairs(np.empty(0, np.int64), none, [], np.empty(0, np.int64), none).figures(alone)  # type: ignore[arg-type]
    assert "no clip could be decoded" in capsys.readouterr().err
    one = np.ones((1, 4), np.float32)
    pair = Pairs(np.arange(1), one, ["a"], np.zeros(1, np.int64), one)
    assert found.keys() == pair.figures(alone).keys() and np.isnan([*found.values()]).all()  # type: ignore[arg-type]
    assert pair.figures(alone)["text_to_video_r1"] == pair.figures(alone)["chance_r1"] == 1  # type: ignore[arg-type]
    broken = Pairs(np.arange(1), one * np.nan, ["a"], np.zeros(1, np.int64), one).figures(alone)  # type: ignore[arg-type]
    assert "not finite" in capsys.readouterr().err and np.isnan([*broken.values()]).all()
