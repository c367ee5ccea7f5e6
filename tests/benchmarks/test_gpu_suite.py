"""The GPU suite where there is no GPU: every part at toy size, and what becomes of parts that fail."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import benchmarks.gpu.kit
from benchmarks import gpu_suite
from benchmarks.gpu.clips import QUICKSTART, ClipSet, clips_of, write_dataset
from benchmarks.gpu.notes import Notes
from benchmarks.gpu.plan import PARTS, Measurement, Part
from pipeline.decoding.decoder_choice import choose_decoder
from pipeline.storage.manifest import Manifest

FAULTY = "tests.benchmarks.gpu_faulty_part"


def owed(parts: tuple[Part, ...]) -> set[str]:
    return {f"{part.name}/{figure}" for part in parts for measured in part.measurements for figure in measured.figures}


def figures_of(report: dict[str, Any]) -> dict[str, Any]:
    """By name; every figure is there once, or absent once."""
    names = [entry["name"] for kind in ("figures", "absent") for entry in report[kind]]
    assert len(names) == len(set(names))
    return {figure["name"]: figure for figure in report["figures"]}


@pytest.mark.slow
@pytest.mark.timeout(900)  # beside other programs; alone it takes half a minute
def test_every_part_is_walked_through(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    assert gpu_suite.main(["--out", str(tmp_path), "--dry", "--commit", "abc"]) == 0
    report = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert report["failures"] == []
    figures = figures_of(report)
    assert figures.keys() | {entry["name"] for entry in report["absent"]} == owed(PARTS)
    for entry in report["absent"]:  # nothing is missing but what a CPU cannot do
        reasons = (
            "not h264",
            "not hevc",
            "GPU",
            "dry walk",
            "no such kernel for it on cpu",
            "NVML",
            "data sheet",
            "to wait for",
        )
        assert any(reason in entry["reason"] for reason in reasons), entry
    for part in PARTS:
        assert any(name.startswith(f"{part.name}/") for name in figures), part.name

    def detail(name: str) -> dict[str, Any]:
        return figures[name]["detail"]

    assert detail("decoding/mode/pipeline")["pixels_differ_by_mean"] == 0
    assert figures["decoding/damage/whole_afterwards"]["value"] == 1
    # DALI decodes with BT.601 whatever the tag says: what `colour_transform` mends
    assert detail("parity/matrix/vp9-bt709-limited")["uses"] == "bt601 limited"
    assert detail("parity/matrix/vp9-bt709-full")["uses"] == "bt601 full"
    for name in ("vp9-bt709-limited-180-352x256", "vp9-bt709-full-270-340x254", "vp8-bt601-limited-0-352x256"):
        assert detail(f"parity/{name}")["right_frames"] == 1
        assert figures[f"parity/{name}"]["value"] < 1.2
    assert figures["kernels/tokens/vit-b/triton/error"]["value"] < 1e-5
    for name in ("steps/guard/skips", "steps/guard/goes_on", "learning/resume/bit_exact", "learning/determinism/gradients"):
        assert figures[name]["value"] == 1, name
    assert detail("learning/resume/bit_exact")["losses_equal"]
    assert figures["end_to_end/vit-b/dali"]["baseline"] == figures["end_to_end/vit-b/cached"]["value"]
    assert sum(figure["value"] for name, figure in figures.items() if "/profile/" in name) == pytest.approx(1)
    settings = {advice["setting"] for advice in report["recommendations"]}
    assert {
        "pipeline/workers/device_decoding.py DECODERS",
        "pipeline/decoding/dali.py mode",
        "--loader.decoder for vit-b",
    } <= settings
    page = (tmp_path / "gpu_suite.md").read_text()
    assert "commit abc" in page
    assert all(f"## {part.title}" in page for part in PARTS)
    made = {"gpu_suite.json", "gpu_suite.md", "gpu_suite.log", "decoding.png", "steps.png", "reconstruction.png"}
    assert {path.name for path in tmp_path.iterdir()} == made | {"step.json.gz", "end_to_end.json.gz"}


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    three = ("raises/first", "raises/second", "raises/third", "raises/fourth")
    faulty = Part(
        "faulty",
        "Faulty",
        FAULTY,
        (
            Measurement("raises", 1, three),
            Measurement("hangs", 1, ("hangs/before", "hangs/after"), limit=1.5),
            Measurement("crashes", 1, ("crashes",)),
            Measurement("lacks", 1, ("lacks",)),
            Measurement("fine", 1, ("fine",)),
            Measurement("later", 25, ("later",), spare=True),
            Measurement("never", 1000, ("never",), spare=True),
        ),
    )
    missing = Part("missing", "Missing", "tests.benchmarks.no_such_part", (Measurement("x", 1, ("x", "y")),))
    last = Part("last", "Last", FAULTY, (Measurement("fine", 20, ("fine",)),))  # most of the time is set aside for it
    gpu_suite.measure([faulty, missing, last], tmp_path, minutes=1.0)
    report = json.loads((tmp_path / "gpu_suite.json").read_text())
    figures = figures_of(report)
    given = {"faulty/raises/first", "faulty/raises/third", "faulty/hangs/before", "faulty/fine", "faulty/later", "last/fine"}
    assert figures.keys() == given  # `later` had no time at first, and was done with what was left
    assert (figures["last/fine"]["ratio"], figures["last/fine"]["detail"]) == (0.5, {"note": "as it should be"})
    reasons = {entry["name"]: entry["reason"] for entry in report["absent"]}
    assert reasons.keys() == owed((faulty, missing, last)) - given
    assert reasons["faulty/raises/second"] == "it failed: ZeroDivisionError: division by zero"
    assert reasons["faulty/raises/fourth"] == "it failed: ValueError: no more"
    assert reasons["faulty/hangs/after"].startswith("killed after 2 s")
    assert reasons["faulty/crashes"] == "its process was ended by SIGSEGV"
    assert reasons["faulty/lacks"] == "there is no such device"
    assert reasons["faulty/never"].startswith("no time: ")
    assert reasons["missing/x"] == reasons["missing/y"] == "its process ended with status 1"
    failures = {failure["measurement"]: failure for failure in report["failures"] if failure["measurement"] != "raises"}
    assert failures.keys() == {"hangs", "crashes", "x"}
    assert "the last words" in failures["crashes"]["traceback"]
    assert "No module named 'tests.benchmarks.no_such_part'" in failures["x"]["traceback"]
    raised = [failure for failure in report["failures"] if failure["measurement"] == "raises"]
    assert ["ZeroDivisionError" in failure["traceback"] for failure in raised] == [True, False]
    assert report["recommendations"][0] == report["recommendations"][0] | {"setting": "SETTING", "value": 3, "now": 1}
    page = (tmp_path / "gpu_suite.md").read_text()
    assert "| fine | 2 s | 0.5 × 4 | note as it should be |" in page
    assert "| `SETTING` | 1 | **3** | it is the best |" in page
    assert "- not measured: x, y: its process ended with status 1" in page


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


def test_clips_come_from_the_kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ClipSet("mjpeg", 160, 128, 8, 2, 6)
    monkeypatch.setattr(benchmarks.gpu.kit, "clip_sets", lambda: [wanted])
    monkeypatch.setattr(benchmarks.gpu.kit, "QUICKSTART", replace(QUICKSTART, clips=2))
    kit, cache = tmp_path / "kit", tmp_path / "cache"
    assert gpu_suite.main(["--prepare", str(kit)]) == 0
    assert (kit / "site" / "tyro" / "__init__.py").exists()
    drawn, _ = clips_of(QUICKSTART, kit, cache)[0]
    assert (drawn.codec, drawn.width, drawn.height, drawn.num_frames) == ("h264", 160, 128, QUICKSTART.frames)
    clips = clips_of(wanted, kit, cache)
    assert not cache.exists()
    assert [(clip.codec, clip.width, clip.height, clip.num_frames) for clip, _ in clips] == [("mjpeg", 160, 128, 6)] * 2
    assert clips[0][1] != clips[1][1]
    manifest = Manifest(write_dataset(tmp_path / "dataset", clips, rows=5))
    assert len(manifest) == 5
    assert manifest.clip(3).offset == manifest.clip(1).offset
    assert choose_decoder(manifest, "cpu", "dali").name == "dali"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dry"], "give either --out DIR"),
        (["--out", "somewhere", "--minutes", "0"], "--minutes 0: it must be more than 0"),
        (["--out", "somewhere", "--kit", "nowhere"], "--kit nowhere: there is no such folder"),
    ],
)
def test_what_cannot_be_is_said(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert gpu_suite.main(arguments) == 2
    assert words in capsys.readouterr().err
