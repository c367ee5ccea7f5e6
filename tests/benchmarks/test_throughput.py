import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks.results
import benchmarks.stopwatch
from benchmarks import throughput
from benchmarks.path_parts import measure_decoding, sampled_requests
from benchmarks.results import Neighbours, Result, _own_seconds
from benchmarks.stopwatch import FEWEST_REPETITIONS, REPETITIONS, Part, Rates, Stopwatch
from benchmarks.throughput import Measured, Options, configuration, verdict
from pipeline.manifest import Manifest
from pipeline.sampling import sample_clips
from train.recipes import RECIPES

RATES = ["decode", "decode_crop/r1", "decode_crop/r4", "loader", "model", "end_to_end"]
# tiny with views of 32 px: a step takes tens of milliseconds
QUICK = ["tiny", "--input-size", "32", "--views-per-clip", "2", "--views-per-step", "8", "--seconds", "0.2", "--device", "cpu"]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """OpenMP threads that wait for each other take ten times as long where another program has a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_figures_are_complete_and_consistent(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    arguments = [*QUICK, "--compute.views-per-forward", "4", "--data", str(dataset), "--json", str(file)]
    assert throughput.main(arguments) == 0
    entries = json.loads(file.read_text())
    figures = {entry["name"].removeprefix("throughput/"): entry for entry in entries}
    assert [*figures] == [*RATES, "first_batch", "data_wait", "neighbours"]
    for entry in entries:
        assert list(entry) == ["name", "value", "unit", "baseline", "ratio"]
        assert math.isfinite(entry["value"])
        if entry["baseline"] is None:
            assert entry["ratio"] is None
        else:
            assert entry["ratio"] == entry["value"] / entry["baseline"]
    assert all(figures[name]["value"] > 0 for name in [*RATES, "first_batch"])
    assert 0 <= figures["data_wait"]["value"] <= 1
    decode = figures["decode"]["value"]
    assert figures["decode_crop/r1"]["baseline"] == figures["decode_crop/r4"]["baseline"] == decode
    assert figures["loader"]["baseline"] == 2 * decode  # R = 2 views of a clip
    assert figures["end_to_end"]["baseline"] == figures["model"]["value"]
    printed = capsys.readouterr().out
    for words in ("decode + crop, R = 4", "end to end", "first batch", "a step takes 8 views in 2 forward passes"):
        assert words in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["tiny", "--views-per-clip", "2", "--views-per-step", "32"],
            "12 clips, and a step of 32 views takes 16; give --views-per-step 24 or less",
        ),
        (["--views-per-clip", "0"], "--views-per-clip 0: it must be at least 1"),
        (["--seconds", "0"], "--seconds 0"),
        (["--json", "no-such-folder/out.json"], "no-such-folder does not exist"),
        (["vit-q"], "the recipes are tiny, "),
        (["vit-b-hybrid", "--views-per-forward", "2"], "at least --views.views-per-clip 4"),
    ],
)
def test_what_cannot_be_is_said(dataset: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert throughput.main(["--device", "cpu", "--data", str(dataset), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_dataset_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert throughput.main(["--device", "cpu", "--data", str(tmp_path / "nothing")]) == 2
    assert "nothing is no dataset" in capsys.readouterr().err


def test_a_step_is_one_forward_pass_unless_said() -> None:
    config = configuration(Options(recipe="vit-b-hybrid", views_per_forward=10, device="cpu"))
    assert (config.views.views_per_step, config.accumulation(1)) == (8, 1)  # whole clips of four views
    tiny = RECIPES["tiny"]()
    assert configuration(Options(recipe="tiny", device="cpu")).views == tiny.views  # a step of its is one pass anyway
    config = configuration(Options(recipe="vit-b-hybrid", views_per_step=256, device="cpu"))
    assert config.accumulation(1) == 2


def test_the_decoders_are_given_what_the_run_would_decode(dataset: Path) -> None:
    config = configuration(Options(recipe="tiny", views_per_clip=2, device="cpu"))
    manifest = Manifest(dataset)
    requests, unreadable = sampled_requests(manifest, config)
    assert unreadable == []
    positions = np.arange(len(manifest))
    expected = sample_clips(manifest, config.sampling, 0, positions, np.zeros_like(positions))
    assert [request.clip.row for request in requests] == expected.rows.tolist()
    for request, frames, boxes in zip(requests, expected.frames, expected.boxes, strict=True):
        assert np.array_equal(request.frames, frames)
        assert np.array_equal(request.boxes[: len(boxes)], boxes)
        assert len(request.boxes) == 4


def test_damaged_clips_are_left_out_and_named(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "dataset"
    shutil.copytree(dataset, damaged)
    clip = Manifest(damaged).clip(3)
    with (damaged / clip.shard).open("r+b") as shard:
        shard.seek(clip.offset)
        shard.write(bytes(clip.size))
    config = replace(configuration(Options(recipe="tiny", device="cpu")), data=damaged)
    threads = torch.get_num_threads()
    parts = measure_decoding(config, Stopwatch(60, torch.device("cpu"), 3))  # time enough for every clip
    assert [len(part.measured.clips) for part in parts] == [REPETITIONS] * 3
    assert torch.get_num_threads() == threads
    streams = capsys.readouterr()
    assert f"1 of the dataset's clips cannot be read or decoded, such as {clip.key}" in streams.out + streams.err


def test_a_dataset_without_a_usable_clip_is_refused(dataset: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "dataset"
    shutil.copytree(dataset, damaged)
    for shard in (damaged / "shards").glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    config = replace(configuration(Options(recipe="tiny", device="cpu")), data=damaged)
    with pytest.raises(ValueError, match="12 of the dataset's clips cannot be read or decoded"):
        measure_decoding(config, Stopwatch(60, torch.device("cpu"), 3))


def measured(*clips: float, neighbours: float = 0.0) -> Measured:
    parts = [Part(name, name, Rates([rate], neighbours), 2) for name, rate in zip(RATES, clips, strict=True)]
    return Measured(parts, first_batch=1.0, data_wait=0.5)


@pytest.mark.parametrize(
    ("loader", "model", "end_to_end", "words"),
    [
        (80.0, 20.0, 18.0, "The model limits: the loader alone is 4.0 times as fast; to keep this model busy takes 0.25 cores"),
        (20.0, 80.0, 18.0, "The loader limits: the model alone is 4.0 times as fast; to keep this model busy takes 4 cores"),
        (20.0, 21.0, 18.0, "Neither limits"),
        (80.0, 20.0, 60.0, "cannot be told: end to end is 3.0 times as fast as the model alone"),
    ],
)
def test_the_verdict_follows_the_rates(loader: float, model: float, end_to_end: float, words: str) -> None:
    config = configuration(Options(recipe="tiny", threads=1, device="cpu"))
    text = verdict(measured(90, 80, 70, loader, model, end_to_end), config, torch.device("cpu"))
    assert words in text
    assert "Other programs" not in text
    busy = verdict(measured(90, 80, 70, loader, model, end_to_end, neighbours=1e3), config, torch.device("cpu"))
    assert "Other programs had up to 1000.0" in busy


class Clock:
    """Time that passes only while something works."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds

    def work(self, seconds: float, clips: int) -> int:
        self.seconds += seconds
        return clips


@pytest.mark.parametrize(("piece", "repetitions"), [(0.25, REPETITIONS), (8.0, FEWEST_REPETITIONS)])
def test_a_rate_is_clips_by_seconds(monkeypatch: pytest.MonkeyPatch, piece: float, repetitions: int) -> None:
    clock = Clock()
    monkeypatch.setattr(benchmarks.stopwatch, "time", clock)
    stopwatch = Stopwatch(5.0, torch.device("cpu"), 1)
    rates = stopwatch.rates("work", lambda: clock.work(piece, clips=3))
    assert rates.clips == [3 / piece] * repetitions
    assert clock.seconds == max(5.0, piece * repetitions)  # a fifth of the time each, or one piece that takes longer
    assert Part("a", "a", rates, 2).views == 2 * 3 / piece
    slow, quick = stopwatch.rates_in_turns("both", [lambda: clock.work(4.0, 8), lambda: clock.work(1.0, 8)])
    assert (slow.clips, quick.clips) == ([2.0] * REPETITIONS, [8.0] * REPETITIONS)


def test_children_are_no_neighbours() -> None:
    """The loader's process is one: its work must not be taken for somebody else's, while it runs or after."""
    before = _own_seconds()
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        running = _own_seconds() - before
    assert running >= 0.4
    assert _own_seconds() - before >= 0.4


def test_what_is_not_our_work_is_the_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(benchmarks.results, "time", clock)
    monkeypatch.setattr(benchmarks.results, "_own_seconds", lambda: 1.0 * clock.seconds)
    monkeypatch.setattr(benchmarks.results, "_busy_seconds", lambda: 1.75 * clock.seconds)
    neighbours = Neighbours()
    clock.work(8.0, 0)
    assert neighbours.cores() == 0.75


def test_ratio_is_null_without_a_baseline() -> None:
    assert Result("a", 3.0, "s").as_json() == {"name": "a", "value": 3.0, "unit": "s", "baseline": None, "ratio": None}
