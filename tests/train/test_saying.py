"""Nothing that a run cannot say ends it, or costs its state: real consoles that go away, disks that are full."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.stop_signals import NUMBERS, StopSignal
from tests.train.trainers import ROOT, lines, losses, start
from train.watch.json_lines import JsonLines, keep_lines, read_lines

SAVED = ("--steps", "100000", "--save-every", "100000", "--log-every", "1")


def lose_the_console(rank: int) -> None:
    """As a tee does that the same Ctrl-C has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def fill_the_console(rank: int) -> None:
    """As a log on a full disk."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)


def close_the_console(rank: int) -> None:
    """As 2>&- does."""
    sys.stderr = None  # type: ignore[assignment]  as Python finds it
    os.close(2)


@pytest.mark.parametrize("fault", [lose_the_console, pytest.param(fill_the_console, marks=pytest.mark.slow), close_the_console])
def test_a_run_needs_no_console(fault: object, dataset: Path, straight: Path, tmp_path: Path) -> None:
    trainer = start(dataset, tmp_path / "run", "--steps", "20", fault=fault)  # type: ignore[arg-type]
    assert trainer.wait() == [0]
    assert losses(tmp_path / "run") == losses(straight)
    assert (tmp_path / "run" / "complete").exists()


@pytest.mark.parametrize(
    "number", [number if number == signal.SIGHUP else pytest.param(number, marks=pytest.mark.slow) for number in NUMBERS]
)
def test_any_signal_that_stops_a_job_saves_without_a_console(number: signal.Signals, dataset: Path, tmp_path: Path) -> None:
    trainer = start(dataset, tmp_path / "run", *SAVED, fault=lose_the_console).until(3).send(number)
    assert trainer.wait() == [0]
    (saved,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert int(saved.name.removeprefix("step-")) == lines(tmp_path / "run" / "metrics.jsonl")[-1]["step"]


@pytest.mark.parametrize("asked", [[], pytest.param(["profile", "loader_profile"], marks=pytest.mark.slow)])
def test_a_run_needs_no_log(asked: list[str], dataset: Path, straight: Path, tmp_path: Path) -> None:
    """A full disk under every file that only tells, and what is in the way of the others."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").symlink_to("/dev/full")
    (out / "tensorboard").write_text("in the way")
    options = ("--reconstruct-every", "5", "--profile", "3:4", "--profile-loader") if asked else ()
    for name in asked:
        (out / name).write_text("in the way")
    trainer = start(dataset, out, "--steps", "20", *options)
    assert trainer.wait() == [0], trainer.text()
    said = trainer.text()
    for what in (str(out / "metrics.jsonl"), "TensorBoard's file", *(["--profile", "--profile-loader"] if asked else [])):
        assert said.count(f"{what} could not be written") == 1, said
    assert "step 20/20" in said
    assert (out / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert not asked or len(list((out / "reconstructions").iterdir())) == 4


def test_lines_wait_for_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.jsonl"
    file.symlink_to("/dev/full")
    kept = JsonLines(file)
    kept.add({"step": 1})
    kept.add({"step": 2}, {"step": 3})
    assert capsys.readouterr().err.count("No space left on device; the run goes on") == 1
    file.unlink()
    kept.add({"step": 4})
    assert [line["step"] for line in read_lines(file)] == [1, 2, 3, 4]
    file.write_text(file.read_text() + '{"step": 5')
    keep_lines(file, lambda line: line["step"] <= 2)
    assert file.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_hangup_that_was_ignored_stays_ignored() -> None:
    """By nohup; those that a shell's script has its background jobs ignore are heard."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        stop = StopSignal()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.raise_signal(signal.SIGQUIT)
        assert stop.requested and stop.name == "SIGQUIT"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


CODE = """
import json, os, sys
sys.path.insert(0, {root!r})
from pipeline.console import open_streams
open_streams({patience})
file = open({file!r}, "w")
for _ in range(30):
    print("·²" * 2000)
print("×", os.fsdecode(b"\\xff"), file=sys.stderr)
print(file.fileno(), file=file)
"""


@pytest.mark.parametrize("streams", [">/dev/full 2>&1", ">&-", "2>&-", "<&- >&- 2>&-", "| true", "2>&1 | sleep 0.8"])
def test_nothing_ends_for_what_it_cannot_print(streams: str, tmp_path: Path) -> None:
    """Nor does a file get the number of a standard stream that was closed. Where only ASCII can be printed, too."""
    code, file = tmp_path / "code.py", tmp_path / "file"
    code.write_text(CODE.format(root=str(ROOT), file=str(file), patience=0.2))
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    shell = ["bash", "-c", f"{{ {sys.executable} {code} || exit 1; }} {streams}; exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(json.loads(file.read_text())) > 2
