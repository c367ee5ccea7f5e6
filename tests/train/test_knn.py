"""k-NN: who the neighbours are, how they vote, and that it does not matter who computed their features, and when."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from model.config import MODELS
from model.video_encoder import VideoEncoder, load_encoder
from model.videomae import VideoMAE
from model.weights import metadata_of
from pipeline.loader import ClipLoader
from pipeline.sampling import EvaluationSampler, SamplingRecipe
from pipeline.storage.manifest import Manifest
from tests.manifest_rows import with_columns
from tests.train.trainers import start
from train import knn
from train.accuracy import neighbours
from train.accuracy.neighbours import Vote, votes
from train.accuracy.parts import Parts
from train.checkpoint.weights import save_weights


def unit(*degrees: float) -> Tensor:
    """Features at these angles, of any length."""
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, len(degrees) + 1)[:, None]


def test_neighbours_vote_by_likeness_and_more_than_there_are_are_all() -> None:
    """Two others, fewer than the original can do; the nearest, at 1 degree, is outvoted by the next two, at 10 and 12."""
    train, labels = unit(0, 11, 13, 90, 180), torch.tensor([0, 1, 1, 2, 3])
    found = votes(train, labels, unit(1, 91), torch.tensor([1, 2]), [1, 3, 200], 0.07, 8)
    assert found == [Vote(1, 1, 0.5, 0.5), Vote(3, 3, 1.0, 1.0), Vote(200, 5, 1.0, 1.0)]
    assert votes(train, labels, unit(1), torch.tensor([0]), [3], 1e-4, 8)[0].top1 == 1.0, "the nearest alone; nothing is inf"
    assert votes(train, labels, unit(1), torch.tensor([7]), [4], 0.07, 8)[0] == Vote(4, 4, 0.0, 0.0)


def test_in_any_portions_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    train, others = torch.randn(60, 8, generator=draw), torch.randn(33, 8, generator=draw)
    labels, theirs = torch.randint(7, (60,), generator=draw), torch.randint(7, (33,), generator=draw)
    ks, whole = [1, 5, 20], votes(train, labels, others, theirs, [1, 5, 20], 0.07, 7)
    monkeypatch.setattr(neighbours, "AT_ONCE", 100)
    assert votes(train, labels, others, theirs, ks, 0.07, 7) == whole
    nearest = (normalize(others, dim=1) @ normalize(train, dim=1).T).argmax(1)
    assert whole[0].top1 == pytest.approx(float((labels[nearest] == theirs).double().mean()))
    for change, words in (((0,), "--k 0 must"), ((1,), "--temperature -1")):
        with pytest.raises(ValueError, match=words):
            votes(train, labels, others, theirs, change, 0.07 if change == (0,) else -1, 7)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MODELS["tiny"]
    model, file = VideoMAE(config), tmp_path_factory.mktemp("weights") / "weights.safetensors"
    for number, (name, parameter) in enumerate(model.named_parameters()):
        shape = tuple(parameter.shape)
        parameter.data.copy_(model.initial_value(name, shape, number))
    save_weights(file, dict(model.named_parameters()), metadata_of(config))
    return file


@pytest.fixture(scope="module")
def gaps(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One training clip, and one other, without a label."""
    labels: list[str | None] = Manifest(labelled).column("label").to_pylist()
    labels[3] = labels[14] = None
    return with_columns(labelled, tmp_path_factory.mktemp("gaps"), label=labels)


def asked(file: Path, dataset: Path, out: Path, *more: str) -> list[str]:
    return [str(file), "--data", str(dataset), "--out", str(out), "--workers", "1", *more]


def test_features_are_the_encoders_and_are_computed_once(
    weights: Path, gaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert knn.main(asked(weights, gaps, out, "--k", "3", "200")) == 0
    said, found = capsys.readouterr(), json.loads((out / "knn.json").read_text())
    assert "1 of 12 clips of split train have no label: they are left out" in said.err
    assert "of all 11 training clips" in said.out and "of 6 of 6 clips, by 11 of 11 training clips" in said.out
    assert found["train"] == {"split": "train", "clips": 11, "of": 11, "unlabelled": 1}
    assert [(each["k"], each["of"]) for each in found["found"]] == [(3, 3), (200, 11)]
    assert found["asked"]["features"] == "mean over the tokens after the last norm" and found["descends_from"]

    table, encoder = pq.read_table(out / "features.parquet"), load_encoder(weights)
    rows = [row for row in range(19) if row not in (3, 14)]
    assert table["row"].to_pylist() == rows
    recipe = SamplingRecipe(
        views_per_step=1, views_per_clip=1, split="all", num_frames=8, input_size=64, crop="center", masks=None
    )
    loader = ClipLoader(gaps, recipe, sampler=EvaluationSampler(views="full", segments=1, crops=1, rows=rows[5:6]), workers=1)
    with torch.no_grad():
        (feature,) = encoder(next(iter(loader)).views)
    loader.close()
    np.testing.assert_allclose(table["feature"][5].as_py(), feature, rtol=1e-4, atol=1e-5)

    monkeypatch.setattr(VideoEncoder, "forward", None)  # it is not asked again
    assert knn.main(asked(weights, gaps, out, "--k", "3", "--temperature", "0.1")) == 0
    again = json.loads((out / "knn.json").read_text())
    assert again["temperature"] == 0.1 and again["found"][0]["k"] == 3
    capsys.readouterr()
    assert knn.main(asked(weights, gaps, out, "--views", "2x1")) == 2
    assert "has features of another evaluation (views 1x1 instead of 2x1)" in capsys.readouterr().err
    assert knn.main(asked(weights, gaps, out, "--split", "all")) == 2
    assert "--split all and --train-split train have 11 clips in common" in capsys.readouterr().err


def in_small_parts(rank: int) -> None:
    """A part a clip, and a moment in which to be killed."""
    add = Parts.add

    def adding(self: Parts, table: pa.Table) -> None:
        add(self, table)
        time.sleep(0.1)

    knn.PART_CLIPS, Parts.add = 1, adding  # type: ignore[method-assign]


@pytest.mark.slow
def test_killed_and_on_other_ranks_it_is_the_same(weights: Path, gaps: Path, tmp_path: Path) -> None:
    how: Any = {"program": "train.knn", "given": [str(weights)], "fault": in_small_parts}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert start(gaps, straight, "--workers", "1", **how).wait() == [0]
    job = start(gaps, killed, "--workers", "1", ranks=2, **how)
    while len([*(killed / "parts").glob("part-*.parquet")]) < 4:
        assert job.processes[0].is_alive(), job.text()
        time.sleep(0.005)
    assert job.send(signal.SIGKILL).wait() == 2 * [-signal.SIGKILL]
    again = start(gaps, killed, "--workers", "1", ranks=2, **how)
    assert again.wait() == [0, 0], again.text()
    tables = [pq.read_table(out / "features.parquet") for out in (straight, killed)]
    assert tables[0]["row"].equals(tables[1]["row"])
    features = [np.stack(table["feature"].to_pylist()) for table in tables]
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-5)  # batches of other sizes
    found = [json.loads((out / "knn.json").read_text())["found"] for out in (straight, killed)]
    assert found[0] == found[1] and not (killed / "parts").exists()
