"""From views to figures, and to what `evaluate` leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from model.classifier import VideoClassifier
from model.config import MODELS
from model.initialization import initialise
from model.weights import metadata_of
from pipeline.decoding.decode import ClipRequest, decode_libav
from pipeline.sampling import SamplingRecipe, multi_view_clips
from pipeline.storage.manifest import Manifest
from tests.page_reader import Page
from tests.train.trainers import start
from train import evaluate
from train.accuracy.accuracy import Accuracy, interval, places
from train.accuracy.predictions import Predictions
from train.accuracy.scores import ClipScores, Merged
from train.checkpoint.weights import save_weights

CONFIG = replace(MODELS["tiny"], input_size=32, num_frames=4, encoder_depth=1)
VAL = range(12, 19)  # rows


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


def accuracy_of(scores: np.ndarray, labels: np.ndarray) -> Accuracy:
    place = places(torch.from_numpy(scores), torch.from_numpy(labels)).numpy()
    return Accuracy.of(labels, scores.argmax(1), place, scores.shape[1])


def test_figures_are_of_labelled_clips_and_a_collapsed_model_is_not_right() -> None:
    labels = np.array([0, 0, 0, 2, 6, -1])
    scores = np.zeros((6, 7))
    scores[1, 1], scores[3, 2], scores[5, 4] = 1, 1, 1
    assert places(torch.from_numpy(scores), torch.from_numpy(labels)).tolist()[:5] == [0, 1, 0, 0, 6]
    found = accuracy_of(scores, labels)
    assert found.num_clips == 5 and found.figures() == {"top1": 3 / 5, "top5": 4 / 5, "mean_class": (2 / 3 + 0 + 1 + 0) / 4}
    assert accuracy_of(scores[:, :5], np.minimum(labels, 4)).top5 is None, "of five classes it would be 100 %"
    nothing = accuracy_of(scores, np.full(6, -1))
    assert np.isnan([*nothing.figures().values()]).all() and nothing.num_clips == 0
    assert found.top1_interval == pytest.approx((0.2307, 0.8824), abs=1e-4) and nothing.top1_interval == (0, 1)  # 3 of 5
    assert interval(0, 10) == pytest.approx((0, 0.2775), abs=1e-4) and interval(10, 10)[1] == 1


@pytest.fixture(scope="module")
def classifier(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoClassifier, list[str]]:
    """Its classes are in another order than the dataset's; it lacks the one of row 13, and has another."""
    labels = Manifest(labelled).column("label").to_pylist()
    names = ["<b>none</b>", *sorted({*labels} - {labels[13]}, reverse=True)]
    model = VideoClassifier(CONFIG, len(names))
    initialise(model, seed=0)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(1))
    file = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_weights(file, dict(model.named_parameters()), metadata_of(CONFIG, names))
    return file, model.eval(), names


@torch.no_grad()
def naive(dataset: Path, model: VideoClassifier, row: int, windows: int, crops: int) -> np.ndarray:
    """Every view an item of its own: decoded, and passed through the model, alone."""
    manifest = Manifest(dataset)
    recipe = SamplingRecipe(views_per_step=1, views_per_clip=1, num_frames=4, input_size=32, crop="center", masks=None)
    clip, samples = manifest.clip(row), multi_view_clips(manifest, recipe, np.array([row]), windows, crops)
    data = bytes_of(dataset, row)
    found = []
    for frames, box in zip(samples.frames[0], samples.boxes[0], strict=True):
        view = np.empty((1, 4, 32, 32, 3), np.uint8)
        decode_libav(ClipRequest(clip, data, frames, box[None]), view)
        found.append(model(torch.from_numpy(view))[0].softmax(-1).numpy())
    return np.mean(found, axis=0)


def bytes_of(dataset: Path, row: int, replaced: bytes | None = None) -> bytes:
    """Of a clip in its shard; then they are others."""
    clip = Manifest(dataset).clip(row)
    with (dataset / clip.shard).open("r+b" if replaced else "rb") as file:
        file.seek(clip.offset)
        data = file.read(clip.size)
        if replaced:
            file.seek(clip.offset)
            file.write(replaced)
    return data


def test_an_evaluation_is_the_naive_one_and_goes_on_where_it_was(
    classifier: tuple[Path, VideoClassifier, list[str]],
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It ends after a part of two clips; goes on while a clip cannot be decoded; and then with that one alone."""
    file, model, names = classifier
    dataset, out = shutil.copytree(labelled, tmp_path / "dataset"), tmp_path / "out"
    command = [str(file), "--data", str(dataset), "--split", "val", "--views", "2x3", "--workers", "1", "--out", str(out)]
    added, add = list[list[int]](), Predictions.add

    def adding(self: Predictions, rows: np.ndarray, merged: Merged) -> None:
        if len(added) == killed_at:
            raise KeyboardInterrupt
        added.append(rows.tolist())
        add(self, rows, merged)

    killed_at = 1
    monkeypatch.setattr(evaluate, "PART_CLIPS", 2)
    monkeypatch.setattr(Predictions, "add", adding)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(command)
    assert added == [[12, 13]]
    killed_at, whole = 99, bytes_of(dataset, 16)
    bytes_of(dataset, 16, bytes(len(whole)))
    capsys.readouterr()
    assert evaluate.main(command) == 0
    key, said = Manifest(dataset).clip(16).key, capsys.readouterr().out
    assert "7 clips of split val, 2x3 views of each, of which 2 were there" in said
    assert (
        f"of 5 of 7 clips; not decoded: {key}" in said
        and "without a label that the weights know, and in no figure: 1 clip\n" in said
    )
    html = Page((out / "evaluation.html").read_text())
    assert html.headings == ["Worst clips", "What is taken for what", "Classes, the worst first", "Not decoded"]
    assert key in html.text and "<b>none</b>" in html.text, "names are text"
    bytes_of(dataset, 16, whole)
    assert evaluate.main(command) == 0
    assert "of which 6 were there" in capsys.readouterr().out
    assert [*chain(*added)] == [*VAL[:4], *VAL[5:], 16], "no clip is evaluated twice"

    table, found = pq.read_table(out / "predictions.parquet"), json.loads((out / "evaluation.json").read_text())
    labels, right = Manifest(dataset).column("label").to_pylist(), []
    assert table["row"].to_pylist() == [*VAL] and set(table["views"].to_pylist()) == {6}
    for line in table.to_pylist():
        expected, label = naive(dataset, model, line["row"], 2, 3), labels[line["row"]]
        assert np.allclose(line["top_probability"], np.sort(expected)[::-1][:5], atol=1e-5, rtol=0)
        assert np.allclose(line["probabilities"], expected, atol=5e-4) and line["prediction"] == names[expected.argmax()]
        if line["row"] == 13:
            assert (line["label"], line["label_index"], line["place"], line["probability"]) == (None, -1, -1, None)
            continue
        own = expected[names.index(label)]
        assert line["label"] == label and line["place"] == (expected > own).sum()
        assert line["probability"] == pytest.approx(own, abs=1e-5)
        right.append(label == names[expected.argmax()])
    assert found["top1"] == pytest.approx(np.mean(right)) and (found["clips"], found["of"], found["missing"]) == (6, 7, [])
    assert found["top1_interval"] == pytest.approx(interval(sum(right), 6))
    with Image.open(out / "examples.png") as examples:
        assert examples.width > 1000 and np.asarray(examples.convert("L")).std() > 10
    pictures = Page((out / "evaluation.html").read_text()).links
    assert len(pictures) == len(right) - sum(right) and all(link.startswith("data:image/jpeg;base64,") for link in pictures)
    assert not (out / "parts").exists()
    assert evaluate.main([*command, "--views", "1x1"]) == 2
    assert "has predictions of another evaluation (views 2x3 instead of 1x1)" in capsys.readouterr().err


@pytest.mark.slow
def test_more_ranks_count_no_clip_twice(
    classifier: tuple[Path, VideoClassifier, list[str]], labelled: Path, tmp_path: Path
) -> None:
    """Seven clips on two ranks: one of them has a place without a clip. Classes that the dataset has not do not compete."""
    file, model, names = classifier
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    program += [str(Path(evaluate.__file__)), str(file), "--data", str(labelled), "--split", "val", "--views", "2x1"]
    done = subprocess.run(
        [*program, "--head", "dataset", "--workers", "1", "--out", str(tmp_path / "out")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "of 6 of 7 clips" in done.stdout
    table = pq.read_table(tmp_path / "out" / "predictions.parquet")
    assert table["row"].to_pylist() == [*VAL]
    for line in table.to_pylist():
        expected = naive(labelled, model, line["row"], 2, 1)
        assert len(line["probabilities"]) == len(names) - 1 and line["prediction"] != names[0]
        assert line["prediction"] == names[1 + expected[1:].argmax()]


def in_small_parts(rank: int) -> None:
    """A part a clip, and a moment in which to be killed."""
    add = Predictions.add

    def adding(self: Predictions, rows: np.ndarray, merged: Merged) -> None:
        add(self, rows, merged)
        time.sleep(0.1)

    evaluate.PART_CLIPS, Predictions.add = 1, adding  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "after"), [(1, 2), (2, 1)])
def test_killed_it_goes_on_with_other_ranks(
    ranks: int, after: int, classifier: tuple[Path, VideoClassifier, list[str]], labelled: Path, tmp_path: Path
) -> None:
    """Nineteen clips, for two ranks: one cannot be decoded, and three have a label that the weights lack."""
    file, _, _ = classifier
    dataset, killed = shutil.copytree(labelled, tmp_path / "dataset"), tmp_path / "killed"
    bytes_of(dataset, 15, bytes(Manifest(dataset).clip(15).size))
    options = ["--split", "all", "--views", "2x3", "--workers", "1", "--resize", "official"]
    how: Any = {"program": "train.evaluate", "given": [str(file)], "fault": in_small_parts}
    straight = start(dataset, tmp_path / "straight", *options, **how)
    assert straight.wait() == [0], straight.text()

    job = start(dataset, killed, *options, ranks=ranks, **how)
    while len([*(killed / "parts").glob("part-*.parquet")]) < 4:
        assert job.processes[0].is_alive(), job.text()
        time.sleep(0.005)
    assert job.send(signal.SIGKILL).wait() == ranks * [-signal.SIGKILL]
    there = len([*(killed / "parts").glob("part-*.parquet")])
    assert 4 <= there < 18 and not (killed / "predictions.parquet").exists()
    again = start(dataset, killed, *options, ranks=after, **how)
    assert again.wait() == after * [0], again.text()
    assert f"19 clips of split all, 2x3 views of each, of which {there} were there" in again.text()

    tables = [pq.read_table(out / "predictions.parquet") for out in (killed, tmp_path / "straight")]
    assert tables[0]["row"].to_pylist() == [row for row in range(19) if row != 15]
    assert tables[0].equals(tables[1])
    found, expected = (json.loads((out / "evaluation.json").read_text()) for out in (killed, tmp_path / "straight"))
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert [each["key"] for each in found["missing"]] == [Manifest(dataset).clip(15).key] and found["clips"] == 15


@pytest.mark.parametrize(
    ("labels", "options", "told"),
    [
        (None, [], "has 3 classes without names, and"),
        (["a", "b", "c"], [], "such as 'a': none is of both"),
        (["a", "a", "fall"], [], "names two classes 'a'"),
        (["a", "b", "fall"], ["--split", "test"], "has no clip of 'test'; it has"),
        (["a", "b", "fall"], ["--workers", "0"], "--workers 0 must be at least 1"),
        (["a", "b", "fall"], ["--decoder", "dali", "--resize", "official"], "DALI resizes crops alone, not whole frames"),
        (["a", "b", "fall"], ["--decoder", "dali"], "DALI takes none of the 7 clips"),
    ],
)
def test_what_cannot_be_evaluated(
    labels: list[str] | None,
    options: list[str],
    told: str,
    labelled: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = VideoClassifier(CONFIG, 3)
    save_weights(tmp_path / "w.safetensors", dict(model.named_parameters()), metadata_of(CONFIG, labels))
    command = [str(tmp_path / "w.safetensors"), "--data", str(labelled), "--split", "val", "--out", str(tmp_path / "out")]
    assert evaluate.main([*command, *options]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()
