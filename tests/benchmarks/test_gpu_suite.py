"""The GPU suite where there is no GPU: both sets at toy size, what becomes of parts that fail, and its checks on a CPU."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_suite
from benchmarks.gpu import nvdec
from benchmarks.gpu.bench import AbsentError
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.plan import DALI, SETS, TRAIN, Part, chosen
from benchmarks.parts.card import CardWatch
from pipeline.decoding import dali

FAULTY = "tests.benchmarks.gpu_faulty_part"


class Impatient(Part):
    def patience(self, dry: bool) -> float:
        return 1.0


pytestmark = pytest.mark.usefixtures("one_thread")


def part(name: str, *words: str, module: str = FAULTY, **more: Any) -> Part:
    return Impatient(name, name.title(), more.pop("seconds", 1), f"{module}.{more.pop('function', name)}", words, **more)


@pytest.mark.slow
@pytest.mark.timeout(900)  # beside other programs; alone each takes less than a minute
@pytest.mark.parametrize("name", SETS)
def test_every_part_is_walked_through(tmp_path: Path, name: str) -> None:
    pytest.importorskip("nvidia.dali")
    assert gpu_suite.main(["--out", str(tmp_path), "--dry", "--parts", name, "--commit", "abc"]) == 0
    report = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert {part["name"]: part["status"] for part in report["parts"]} == {part.name: "done" for part in SETS[name]}
    assert all(not part["failure"] and (part["figure"] or part["name"] == "facts") for part in report["parts"])
    for part in report["parts"]:
        for entry in part["absent"]:  # nothing is missing but what a CPU cannot do
            reasons = ("not h264", "not hevc", "nothing is compiled in a dry walk", "no such kernel for it on cpu")
            assert any(reason in entry["reason"] for reason in reasons), entry
    figures = {f"{part['name']}/{figure['name']}": figure for part in report["parts"] for figure in part["figure"]}
    if name == "train":
        assert report["machine"]["torch"] == torch.__version__.partition("+")[0]
        assert figures["vit-g-none/step/tiny/fp32"]["value"] > 0
        assert sum(value["value"] for key, value in figures.items() if "vit-b/share/" in key) == pytest.approx(1)
        assert figures["tokens/tokens/vit-b/triton"]["detail"]["error"] < 1e-5
        nothing = ("vit-b/skipped", "resume/resume", "gradients/gradients", "gradients/deterministic gradients")
        assert [figures[name]["value"] for name in nothing] == [0, 0, 0, 0]
        assert figures["vit-b-libav/vit-b/end_to_end"]["baseline"] == figures["vit-b-libav/vit-b/model"]["value"]
    else:
        assert [figures[f"nvdec/in_flight/{number}"]["value"] > 0 for number in (14, 7, 4)] == [True] * 3
        assert figures["decoders/vp9-bt709-full-270-340x254"]["detail"]["within_bounds"]
        assert figures["contexts/stray contexts"]["value"] == 0
    page = (tmp_path / "gpu_suite.md").read_text()
    assert "commit abc" in page and all(f"## {part.title}" in page for part in SETS[name])
    assert {path.name for path in tmp_path.iterdir()} == {"gpu_suite.json", "gpu_suite.md", "gpu_suite.log"}


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    parts = [
        part("raises"),
        part("hangs"),
        part("crashes"),
        part("lacks"),
        part("long", seconds=1000, function="fine"),
        part("fine", "well"),
        part("missing", module="tests.benchmarks.no_such_part", process=1),
    ]
    gpu_suite.measure(parts, tmp_path, minutes=1.0)
    report = json.loads((tmp_path / "gpu_suite.json").read_text())
    found = {part["name"]: part for part in report["parts"]}
    status = {name: part["status"] for name, part in found.items()}
    assert status.pop("long").endswith("s were left, it takes 1000")
    assert status == {
        "raises": "failed: ValueError: no more",
        "hangs": "failed: killed after 1 s: it hangs, or is too slow",
        "crashes": "failed: its process was ended by SIGSEGV",
        "lacks": "absent: there is no such device",
        "fine": "done",
        "missing": "failed: ModuleNotFoundError: No module named 'tests.benchmarks.no_such_part'",
    }
    figures = {name: [figure["name"] for figure in part["figure"]] for name, part in found.items() if part["figure"]}
    assert figures == {"raises": ["third"], "hangs": ["before"], "fine": ["fine"]}
    assert [failure["name"] for failure in found["raises"]["failure"]] == ["second", "raises"]
    assert "ZeroDivisionError" in found["raises"]["failure"][0]["traceback"]
    assert "the last words" in found["crashes"]["failure"][0]["traceback"]
    page = (tmp_path / "gpu_suite.md").read_text()
    assert "| fine | 2 s | 0.5 × 4 | note well |" in page and "| before | nan s |" in page and "as it should be" in page


def test_nothing_is_begun_that_does_not_fit(tmp_path: Path) -> None:
    """A process' start is in the budget; what goes beyond it is killed, and keeps what it had."""
    began = time.monotonic()
    report = gpu_suite.measure([part("fine", "well", seconds=0)], tmp_path, minutes=5 / 60)
    assert report["parts"][0]["status"] == "not done: 0 s were left after a process' start, it takes 0"
    report = gpu_suite.measure([Part("hangs", "", 0, f"{FAULTY}.hangs")], tmp_path, minutes=2 / 60, dry=True)
    assert report["parts"][0]["status"] == "failed: killed: the time was over"
    assert [figure["name"] for figure in report["parts"][0]["figure"]] == ["before"]
    assert time.monotonic() - began < 60


def test_parts_are_chosen_by_set_or_by_name() -> None:
    assert chosen([]) == list(TRAIN) and chosen(["dali"]) == list(DALI)
    assert [part.name for part in chosen(["attention", "vit-g-full"])] == ["vit-g-full", "attention"]
    every = chosen(list(SETS))
    assert len(every) == len({part.name for part in every}) and every[0].name == "facts"
    assert sum(part.seconds for part in TRAIN) + 25 + 10 < 360 and sum(part.seconds for part in DALI) + 25 + 20 < 300


def test_a_note_is_read_when_it_is_whole(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes")
    assert list(notes.fresh()) == []
    notes.write("figure", name="a")
    with notes.file.open("a") as file:
        file.write('{"kind": "half')
    assert [note["name"] for note in notes.fresh()] == ["a"]
    with notes.file.open("a") as file:
        file.write('"}\n')
    assert [note["kind"] for note in notes.fresh()] == ["half"]


@pytest.fixture(scope="module")
def decoder() -> Any:
    pytest.importorskip("nvidia.dali")
    return dali.DaliDecoder("cpu", 1, 32)


def test_colours_of_dali(decoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It decodes with BT.601 whatever the tag says, which `colour_transform` mends; and the check sees where it does not."""
    from benchmarks.gpu import colours
    from benchmarks.gpu.clips import ClipSet, clips_of, turned

    nearest, errors = colours.matrix_used(decoder, *colours.patches("vp9", "bt709", "full"))
    assert nearest == "bt601 full" and errors[nearest] < 0.5 < errors["bt709 full"]
    clips = clips_of(ClipSet("vp9", 160, 128, 8, 1, 8, "bt709", "limited"), tmp_path)
    away = colours.difference(decoder, [(turned(clip, 90), data) for clip, data in clips], 3, 2)
    assert away["right_frames"] == 1 and away["mean"] < 1.2 and away["p99"] <= 4
    monkeypatch.setattr(dali, "colour_transform", lambda matrix, full: (np.eye(3, dtype=np.float32), np.zeros(3, np.float32)))
    assert colours.difference(decoder, clips, 3, 2)["mean"] > 2
    with pytest.raises(AbsentError, match="not h264"):
        colours.difference(decoder, [(replace(clip, codec="h264"), data) for clip, data in clips], 3, 2)


def test_what_must_hold_of_a_step() -> None:
    from benchmarks.gpu.sameness import deterministic, differing_gradients
    from benchmarks.gpu.steps import changed_by_a_skipped_step, do_not_wait
    from benchmarks.parts.path_parts import ModelWork
    from benchmarks.parts.step_work import pretraining, random_batch
    from model.config import MODELS
    from train.compute.parallel import started
    from train.config import ComputeConfig

    config = replace(MODELS["tiny"], input_size=32, encoder_depth=1, decoder_depth=1)
    compute = ComputeConfig(precision="fp32", views_per_forward=2, activation_checkpointing="none", compile=False)
    with started("cpu") as ranks:
        batch = random_batch(config, 2, 0.5, ranks.device)
        work = ModelWork(pretraining(config, compute, views=2), batch, ranks)
        do_not_wait(work)
        with deterministic():
            assert differing_gradients(work.training, batch) == []
        assert not torch.are_deterministic_algorithms_enabled()
        assert changed_by_a_skipped_step(work.training, batch) == []
        work.training.guard.step = lambda number, optimizer, *_: (optimizer.step(), (None, torch.zeros(())))[1]
        with pytest.raises(RuntimeError, match="no step is taken"):
            changed_by_a_skipped_step(work.training, batch)
        del work


def test_contexts_on_other_devices_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch._C, "_cuda_hasPrimaryContext", lambda number: number in (0, 3))
    assert nvdec.stray_contexts(torch.device("cuda", 3)) == [0]
    assert nvdec.stray_contexts(torch.device("cuda", 0)) == [3]


def test_power_and_clock_stand_beside_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = SimpleNamespace(
        NVMLError=OSError,
        NVML_CLOCK_SM=1,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-abc": "card"}[uuid],
        nvmlDeviceGetPowerUsage=lambda card: 650_000,
        nvmlDeviceGetClockInfo=lambda card, kind: 1500,
        nvmlDeviceGetDecoderUtilization=lambda card: (25, 0),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    with CardWatch(torch.device("cuda", 0)) as watch:
        time.sleep(0.5)
    assert watch.means == {"watts": 650, "sm_mhz": 1500, "nvdec": 0.25}
    with CardWatch(torch.device("cpu")) as watch:
        pass
    assert watch.means == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dry"], "give --out DIR"),
        (["--out", "somewhere", "--minutes", "0"], "--minutes 0: it must be more than 0"),
        (["--out", "somewhere", "--data", "nowhere"], "--data nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_is_said(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert gpu_suite.main(arguments) == 2
    assert words in capsys.readouterr().err
