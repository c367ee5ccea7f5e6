import json
import math
import os
import re
import subprocess
import sys
from collections import deque
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import torch

import benchmarks.parts.results
import benchmarks.parts.stopwatch
from benchmarks import throughput
from benchmarks.parts import original_files
from benchmarks.parts.original_files import Built, OriginalFiles, build_of_files, dataset_files, shuffled_files
from benchmarks.parts.path_parts import DecodeWork, LoaderWork
from benchmarks.parts.results import Neighbours, Result, _own_seconds
from benchmarks.parts.stopwatch import Part, Stopwatch, wait_until_idle
from benchmarks.parts.throughput_plot import plot
from benchmarks.parts.throughput_table import Measured, headline, results, table, verdict
from benchmarks.throughput import Options, configuration
from dataset_builders.media.probe import probe
from pipeline.machine import usable_cores
from pipeline.sampling import sample_clips
from pipeline.stage_meters import RECORD, BatchMeter, StageMeters
from pipeline.storage.manifest import Manifest
from train.recipes.pretraining import RECIPES

# tiny with views of 32 px: a step takes tens of milliseconds
QUICK = [
    "tiny",
    "--input-size",
    "32",
    "--views-per-clip",
    "2",
    "--seconds",
    "0.1",
    "--rounds",
    "1",
    "--device",
    "cpu",
    "--workers",
    "1",
]


def check_figures(entries: list[dict]) -> dict[str, dict]:
    """By name; every figure is finite and every ratio the median of its rounds' ratios."""
    for entry in entries:
        assert list(entry)[:5] == ["name", "value", "unit", "baseline", "ratio"]
        assert math.isfinite(entry["value"])
        if entry["baseline"] is None:
            assert entry["ratio"] is None
        elif "rounds" in entry:
            assert entry["ratio"] == np.median(entry["rounds"])
            assert entry["ratio"] == pytest.approx(entry["value"] / entry["baseline"])  # there is one round
        else:
            assert entry["ratio"] == entry["value"] / entry["baseline"]
    assert len({entry["name"] for entry in entries}) == len(entries)
    return {entry["name"]: entry for entry in entries}


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_dataset_is_measured_as_a_whole(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out.json"
    arguments = [*QUICK, "--views-per-step", "8", "--compute.views-per-forward", "4", "--data", str(dataset)]
    assert throughput.main([*arguments, "--json", str(file)]) == 0
    figures = check_figures(json.loads(file.read_text()))
    for r in (1, 2, 4):
        loader, decode = (figures[f"loader/libav/r{r}{name}"] for name in ("", "/decode_only"))
        shares = figures[f"loader/libav/r{r}/vs_decode_only"]
        assert (loader["unit"], decode["unit"], shares["unit"]) == ("views/s", "clips/s", "clips/s")
        assert loader["value"] == pytest.approx(r * shares["value"])
        assert shares["baseline"] == decode["value"]
        assert figures[f"loader/libav/r{r}/first_batch"]["value"] > 0
    assert figures["end_to_end"]["baseline"] == figures["model"]["value"]
    assert 0 <= figures["data_wait"]["value"] <= 1
    assert not any("dataloader" in name for name in figures)
    printed = capsys.readouterr().out
    for words in (
        "loader, libav, R = 4",
        "end to end",
        "first batch",
        "a step takes 8 views, R = 2, in 2 forward passes",
        "not measured: dali: DALI takes none of the 12 clips",
        "not measured: DataLoader over the original files: none of the 12 files can be taken; passed over: 12 are less than "
        "300 px wide (--min-width)",
    ):
        assert words in printed


@pytest.mark.usefixtures("one_thread")
@pytest.mark.slow
def test_files_are_measured_before_anything_is_built(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "out.json", tmp_path / "out.png"
    arguments = [*QUICK, "--videos", str(dataset.parent / "videos"), "--files", "4", "--more"]
    assert throughput.main([*arguments, "--json", str(file), "--plot", str(picture)]) == 0
    figures = check_figures(json.loads(file.read_text()))
    peers = [figure for name, figure in figures.items() if name.startswith("dataloader/")]
    assert peers
    best = max(peer["value"] for peer in peers)
    for name in ("vs_dataloader_peer", "vs_dataloader_peer_same_files"):
        assert figures[f"loader/libav/r4/{name}"]["baseline"] == best
    assert figures["loader/libav/r4/vs_dataloader_peer"]["value"] == figures["loader/libav/r4/h264_fast"]["value"]
    assert figures["loader/libav/r4/vs_dataloader_peer_same_files"]["value"] == figures["loader/libav/r4/same_files"]["value"]
    for preset in ("h264_fast", "h264_plain"):
        assert figures[f"builder/{preset}/bytes"]["ratio"] > 0
    for r in (1, 4):
        beside, own = (figures[f"loader/libav/r{r}/{name}vs_plain_preset"] for name in ("", "own_ms/"))
        assert r * beside["value"] == pytest.approx(figures[f"loader/libav/r{r}/h264_fast"]["value"])
        assert r * beside["baseline"] == pytest.approx(figures[f"loader/libav/r{r}/h264_plain"]["value"])
        assert own["value"] > 0 and own["baseline"] > 0
    for name in ("loader/finetune", "loader/finetune/plain"):
        theirs = name.replace("loader/", "dataloader/", 1)
        assert figures[f"{name}/vs_dataloader"]["baseline"] == figures[theirs]["value"]
    assert figures["loader/finetune/device/vs_official"]["baseline"] == figures["loader/finetune"]["value"]
    assert "model" not in figures
    printed = capsys.readouterr().out
    assert "building 3 small datasets of 4 of the 12 files" in printed
    assert "as they are (--preset copy), and" in printed or "Cannot tell how tubecell and" in printed
    assert printed.count("; beside decoding ") == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["tiny", "--views-per-clip", "2", "--views-per-step", "32"],
            "12 clips, and a step of 32 views takes 16; give --views.views-per-step 24 or less",
        ),
        (["--views-per-clip", "0"], "--views-per-clip 0: it must be at least 1"),
        (["--rounds", "0"], "--rounds 0: it must be at least 1"),
        (["--seconds", "0"], "--seconds 0"),
        (["--json", "no-such-folder/out.json"], "no-such-folder does not exist"),
        (["--plot", "out.gif"], "ends in .png or .svg"),
        (["--videos", "somewhere"], "give one of them"),
        (["vit-q"], "the recipes are vit-s-own, vit-b-own, micro, tiny, "),
        (["vit-b-hybrid", "--views-per-forward", "2"], "at least --views.views-per-clip 4"),
    ],
)
def test_what_cannot_be_is_said(dataset: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert throughput.main(["--device", "cpu", "--data", str(dataset), *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "words"), [("--data", "nothing is no dataset"), ("--videos", "nothing: there is no such folder")]
)
def test_what_is_missing_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, words: str) -> None:
    assert throughput.main(["--device", "cpu", flag, str(tmp_path / "nothing")]) == 2
    assert words in capsys.readouterr().err


def test_a_step_is_one_forward_pass_unless_said() -> None:
    config = configuration(Options(recipe="vit-b-hybrid", views_per_forward=10, device="cpu"))
    assert (config.views.views_per_step, config.accumulation(1)) == (8, 1)  # whole clips of four views
    config = configuration(Options(recipe="vit-b-hybrid", device="cpu"))  # bearable on a CPU
    assert (config.compute.precision, config.views.views_per_step) == ("fp32", 8)
    config = configuration(Options(recipe="vit-b-hybrid", views_per_step=256, device="cpu"))
    assert config.accumulation(1) == 32
    config = configuration(Options(device="cpu"))
    assert (config.model, config.views.views_per_step) == (RECIPES["tiny"]().model, 16)


@pytest.mark.slow
def test_decoding_alone_is_given_what_the_loader_delivered(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(Options(recipe="tiny", views_per_clip=2, views_per_step=8, workers=1, device="cpu"))
    stopwatch = Stopwatch(1.0, torch.device("cpu"))
    with closing(LoaderWork(dataset, config.sampling, config, stopwatch)) as loader, closing(DecodeWork(loader, 0.2)) as decode:
        loader.prepare()
        assert sum(loader.work() for _ in range(4)) == 16
        monkeypatch.setattr(decode.stages, "share", shared := Mock(side_effect=decode.stages.share))
        decode.prepare()
        assert decode.work() > 0
        batches, manifest = loader.turns[-1].batches, loader.loader.manifest
        places = [(batch.epoch, np.array([position])) for batch in batches for position in batch.positions.tolist()]
        for (epoch, place), one in zip(places, shared.call_args.args[0], strict=True):
            expected = sample_clips(manifest, config.sampling, epoch, place, np.zeros_like(place))
            assert one.rows == expected.rows and np.array_equal(one.frames, expected.frames)
        clip = manifest.clip(int(one.rows[0]))
        late = replace(one, frames=one.frames * 0 + clip.num_frames)
        decode.stages.share([one, late])
        with pytest.raises(RuntimeError, match=f"{clip.key}: frame {clip.num_frames} does not come out"):
            decode.work()
        substitutes = [replace(batch, rows=batch.rows + 1) for batch in batches]  # not the clips that the order names
        loader.turns[-1].batches = deque(substitutes)
        with pytest.raises(RuntimeError, match="no clip was delivered"):
            decode.prepare()


@pytest.mark.slow
def test_the_files_are_those_that_both_datasets_have(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pieces").mkdir()
    videos = dataset.parent / "videos"
    paths = dataset_files(dataset)
    assert sorted(Path(path.decode()) for path in paths) == sorted(videos.rglob("*.mp4"))
    original = Path(paths[0].decode())
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "notes.txt").write_text("no video")
    (bad / "b\xe4d.mp4").write_bytes(b"\0" * 1000)
    (bad / "short.mp4").symlink_to(original)
    monkeypatch.setattr(original_files, "LONGEST", 1.0)  # and a piece is longer than the clip
    pieces = build_of_files([os.fsencode(original)], 1, 0, tmp_path / "pieces", plain=False)
    assert [file.suffix for file in pieces.files] == [".mkv"] and pieces.copy.clips == pieces.h264_fast.clips == 1
    assert list(pieces.built) == ["h264-fast"]
    monkeypatch.undo()
    found = build_of_files(shuffled_files(bad), 40, 0, tmp_path)
    assert [file.resolve() for file in found.files] == [original]
    assert (found.copy.clips, found.h264_fast.clips, found.h264_plain.clips) == (1, 1, 1)
    assert found.bytes == found.copy.bytes == found.files[0].stat().st_size
    assert (found.width, found.height) == (int(Manifest(dataset).width[0]), int(Manifest(dataset).height[0]))


def test_a_piece_of_a_long_file_is_taken_as_it_is(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = sorted((dataset.parent / "videos").rglob("*.mp4"))[0]
    whole = probe(os.fsencode(video))
    monkeypatch.setattr(original_files, "PIECE", 1)
    original_files.cut(video, 0.5, piece := tmp_path / "piece.mkv")
    found = probe(os.fsencode(piece))
    assert (found.codec, found.width, found.height) == (whole.codec, whole.width, whole.height)
    assert 0.5 <= original_files.length(found) <= min(2.0, original_files.length(whole))
    (tmp_path / "notes.mp4").write_text("no video")
    with pytest.raises(ValueError, match=r"notes\.mp4: FFmpeg cannot cut a piece out of it: "):
        original_files.cut(tmp_path / "notes.mp4", 0.0, tmp_path / "none.mkv")


@dataclass
class Clock:
    """Time that passes only while something works."""

    seconds: float = 0.0

    def perf_counter(self) -> float:
        return self.seconds


@dataclass
class Fake:
    """A contestant of a known pace."""

    clock: Clock
    piece: float
    clips: int
    prepared: int = 0

    def prepare(self) -> None:
        self.prepared += 1
        self.clock.seconds += 100  # not on the clock

    def work(self) -> int:
        self.clock.seconds += self.piece
        return self.clips


def test_a_rate_is_clips_by_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    rests: list[float] = []
    monkeypatch.setattr(benchmarks.parts.stopwatch, "time", clock)
    monkeypatch.setattr(benchmarks.parts.stopwatch, "wait_until_idle", lambda: rests.append(clock.seconds))
    quick, slow = (Part(f"{piece}", "", 4, Fake(clock, piece, 3)) for piece in (0.25, 8.0))
    Stopwatch(2.0, torch.device("cpu")).rounds([quick, slow], 3)
    assert (quick.rates, slow.rates) == ([12.0] * 3, [0.375] * 3)
    assert quick.views == 48.0
    assert clock.seconds == 6 * 100 + 3 * (2 + 8)
    assert len(rests) == 1 + 6  # before the first turn, and after each


def part(name: str, views: int, *rates: float, others: float = 0.0) -> Part:
    return Part(name, name, views, Fake(Clock(), 1, 1), list(rates), [1.0] * len(rates), [others] * len(rates))


def test_ratios_are_taken_round_by_round() -> None:
    loader, decode = part("loader", 4, 10, 20, 90), part("decode_only", 1, 20, 25, 100)
    assert loader.result("clips/s", "a", decode) == Result("a", 20, "clips/s", 25, [0.5, 0.8, 0.9])
    assert loader.result("clips/s", "a", decode).ratio == 0.8
    result = loader.result("views/s", "b", part("peer", 2, 1, 2, 3))
    assert (result.value, result.baseline, result.ratio) == (80, 4, 20)
    assert loader.result("views/s").as_json()["rounds"] == [40, 80, 360]
    assert Result("a", 3.0, "s").as_json() == {"name": "a", "value": 3.0, "unit": "s", "baseline": None, "ratio": None}


def measured(loader: float, model: float, end_to_end: float, neighbours: float = 0.0) -> Measured:
    found = Measured(2, 1, torch.device("cpu"), data_wait=0.5, first_batch={"loader/libav/r2": 1.0})
    found.add(part("loader/libav/r2", 2, loader, others=neighbours))
    found.decode_only["loader/libav/r2"] = found.add(part("decode_only", 1, 2 * loader))
    found.model = found.add(part("model", 2, model))
    found.end_to_end = found.add(part("end_to_end", 2, end_to_end))
    return found


def test_the_verdict_is_that_of_the_profile() -> None:
    found = measured(80.0, 20.0, 18.0)
    found.profile = {"verdict": {name: f"<{name}>" for name in ("limits", "change", "following", "sure")}}
    text = verdict(found)
    words = "The loader alone is 4.0 times as fast as the model alone; to keep this model busy takes 0.25 cores of decoding"
    assert words in text and "What limits       <limits>" in text and "waited for data 50%" in text
    assert "Cannot tell" not in text
    assert "Cannot tell how fast this machine is: other programs had up to 1000.0" in verdict(
        measured(80, 20, 18, neighbours=1e3)
    )


def over_files(*same: float, neighbours: float = 0.0) -> Measured:
    """A DataLoader of 4 views/s in every round, tubecell of so many on the same files, and of twelve times as many built."""
    found = Measured(4, 1, torch.device("cpu"), first_batch={"loader": 1.0})
    built = Built(Path("built"), 2, 50, 3.0, set())
    found.originals = OriginalFiles([Path("a"), Path("b")], 100, 320, 240, "h264", built, built, None)
    found.peers.append(found.add(part("dataloader/pyav/r4", 4, *[1.0] * len(same), others=neighbours)))
    found.on_files["r4/same_files"] = found.add(part("same", 4, *[rate / 4 for rate in same]))
    found.on_files["r4/h264_fast"] = found.add(part("fast", 4, *[12.0] * len(same)))
    return found


def test_the_headline_is_a_ratio_or_that_it_cannot_be_told(tmp_path: Path) -> None:
    told = headline(over_files(11.0, 12.0, 13.0))
    assert told.startswith(
        "On these files tubecell gives 3.0 x the views of dataloader/pyav/r4, as they are (--preset copy), and 12 x"
    )
    assert told.endswith("which takes 1.5 s a clip here and makes 0.5 x the bytes.")
    busy, unsteady = over_files(11.0, 12.0, 13.0, neighbours=0.5 * usable_cores()), over_files(8.0, 12.0, 20.0)
    for found, why in ((busy, "other programs had up to "), (unsteady, "the rounds do not agree: from 2.0 x to 5.0 x")):
        assert headline(found).startswith(f"Cannot tell how tubecell and a DataLoader compare on these files: {why}")
        assert verdict(found).count(" x ") == headline(found).count(" x ")  # no ratio beside it
        plot(found, file := tmp_path / "untold.svg")
        drawn = "".join(re.findall("<!-- (.*) -->", file.read_text()))
        assert "Cannot tell: " in drawn and "×" not in drawn.replace("320 × 240", "")
    plot(over_files(11.0, 12.0, 13.0), file)
    drawn = "".join(re.findall("<!-- (.*) -->", file.read_text()))
    assert "3.0 ×" in drawn and "12 ×" in drawn and "longer is better" in drawn and "2 video files, 320 × 240" in drawn


def on_clips(rate: float, decode: float, others: float) -> Part:
    """A loader with four views, in clips/s, whose clips take a core so many ms to decode and for the rest."""
    work, records = LoaderWork.__new__(LoaderWork), np.zeros(3, RECORD)
    for name, ms in (("decode", decode), ("resize", others / 2), ("plan", others / 2), ("cpu", decode + others / 2)):
        records[name] = 1e6 * ms
    work.turns = [StageMeters()]
    work.turns[0].add(BatchMeter(0, 0, 0, 0, np.arange(3), np.arange(3), records))
    return Part(f"{rate:g}", "", 4, work, [rate], [1.0], [0.0])


def test_the_table_says_what_the_figures_say() -> None:
    found = measured(80.0, 20.0, 18.0)
    found.on_files = {"r4/h264_fast": on_clips(30.0, 9.0, 4.0), "r4/h264_plain": on_clips(20.0, 18.0, 5.0)}
    lines = table(found).splitlines()
    assert any(line.startswith("loader/libav/r2") and line.endswith("50 % (50 to 50) of decode only") for line in lines)
    assert any(line.startswith("end_to_end") and line.endswith("90 % (90 to 90) of model alone") for line in lines)
    assert any(line.endswith("1.50 x (1.50 to 1.50); beside decoding 4 ms of a core a clip, 0.80 x") for line in lines)
    figures = {result.name: result.ratio for result in results(found)}
    assert (figures["loader/libav/r4/vs_plain_preset"], figures["loader/libav/r4/own_ms/vs_plain_preset"]) == (1.5, 0.8)
    assert figures["loader/libav/r2/vs_decode_only"] == 0.5
    assert figures["end_to_end"] == 0.9


def test_nobody_works_off_the_clock() -> None:
    """A child that still works is waited for; one that sleeps is not."""
    burn = "import time\nprint(flush=True)\nwhile time.process_time() < 0.6: pass\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        wait_until_idle()
        times = psutil.Process(child.pid).cpu_times()
        child.communicate(b"\n")
    assert times.user + times.system >= 0.55


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
    monkeypatch.setattr(benchmarks.parts.results, "time", clock)
    monkeypatch.setattr(benchmarks.parts.results, "_own_seconds", lambda: 1.0 * clock.seconds)
    monkeypatch.setattr(benchmarks.parts.results, "_busy_seconds", lambda: 1.75 * clock.seconds)
    neighbours = Neighbours()
    clock.seconds += 8
    assert (neighbours.cores(), neighbours.own()) == (0.75, 1.0)
