import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import quickstart
from tests.manifest_rows import row, write_rows
from train.recipes.pretraining import tiny


def test_sources_have_folders_of_their_own_and_a_link_names_the_one_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    generated = quickstart.run_folder(None, True)
    (generated / "complete").touch()
    own = quickstart.run_folder(tmp_path / "a" / "videos", False)
    other = quickstart.run_folder(tmp_path / "b" / "videos", False)
    assert len({generated, own, other}) == 3
    assert quickstart.run_folder(tmp_path / "a" / "videos", True) != own  # labels came: another dataset and recipe
    quickstart.run_folder(tmp_path / "b" / "videos", False)
    assert os.path.samefile(tmp_path / "runs" / "quickstart", other)
    assert quickstart.run_folder(None, True) == generated
    assert (tmp_path / "runs" / "quickstart" / "complete").exists()


def test_the_videos_are_not_what_the_dataset_goes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quickstart, "ROOT", tmp_path / "checkout")
    monkeypatch.setattr("sys.argv", ["quickstart.py", "--videos", str(tmp_path)])
    assert quickstart.main() == 2
    assert f"--videos {tmp_path} holds runs/quickstart-" in capsys.readouterr().err


def test_a_small_folder_takes_smaller_steps(dataset: Path, tmp_path: Path) -> None:
    usual = tiny().views
    assert quickstart.fewer_views(dataset, usual) == []  # 12 clips, two views each
    for clips, flags in ((3, ["--views.views-per-step", "6"]), (1, ["--views.views-per-step", "2"])):
        (tmp_path / str(clips)).mkdir()
        write_rows(tmp_path / str(clips), [row(i) for i in range(clips)])
        assert quickstart.fewer_views(tmp_path / str(clips), usual) == flags
        assert int(flags[1]) < usual.views_per_step
    write_rows(tmp_path, [])
    with pytest.raises(ValueError, match="none of the videos could be used"):
        quickstart.fewer_views(tmp_path, usual)


def test_labels_are_the_folders_of_both_parts(tmp_path: Path) -> None:
    (tmp_path / "train" / "jump").mkdir(parents=True)
    assert not quickstart.has_labels(tmp_path)
    (tmp_path / "val").mkdir()
    assert not quickstart.has_labels(tmp_path)
    (tmp_path / "val" / "jump").mkdir()
    assert quickstart.has_labels(tmp_path)


def test_what_pretraining_was_good_for_is_told_with_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method, top1, interval in (("from-scratch", 0.125, [0.065, 0.228]), ("fine-tuned", 0.5, [0.381, 0.619])):
        (tmp_path / method / "held-out").mkdir(parents=True)
        found = json.dumps({"top1": top1, "top1_interval": interval, "clips": 64})
        (tmp_path / method / "held-out" / "evaluation.json").write_text(found)
    quickstart.print_accuracy(tmp_path, True)
    told = capsys.readouterr().out
    assert "top-1, from scratch                   12.5%   95 %: 6% to 23%, of 64 clips held out" in told
    assert "top-1, from the pre-trained encoder   50.0%   95 %: 38% to 62%" in told
    quickstart.print_accuracy(tmp_path, False)
    assert "nothing to fine-tune on" in capsys.readouterr().out


@pytest.mark.slow
def test_whoever_ends_it_ends_its_program(tmp_path: Path) -> None:
    """A scheduler's SIGTERM reaches quickstart.py alone."""
    code = f"import quickstart; quickstart.call('clips', 'generate-clips', '--out', {str(tmp_path)!r}, '--clips', 10**6)"
    running = subprocess.Popen(
        [sys.executable, "-c", code], cwd=quickstart.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not any(tmp_path.iterdir()):
        assert running.poll() is None
        time.sleep(0.1)
    (program,) = psutil.Process(running.pid).children()
    running.terminate()
    assert running.wait(60) == 128 + signal.SIGTERM
    assert not psutil.pid_exists(program.pid)
