import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.report.charts import Curve, lines, thinned
from tests.manifest_rows import with_columns
from tests.page_reader import Page
from tests.train.trainers import run, start
from train import report
from train.pages.run_record import RunRecord


@pytest.fixture(scope="module")
def runs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One that was started twice, and one that failed: with its learning rate, steps were skipped."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data").mkdir()
    splits, labels = ["train"] * 10 + ["val"] * 2, ["b", "a", None] * 4
    labelled = with_columns(dataset, folder / "data", split=splits, label=labels)
    said = run(labelled, folder / "first", "--steps", "4", "--reconstruct-every", "4")
    assert "10 clips of split train (left out: 2 val); 2.0 epochs of 2 steps" in said
    run(labelled, folder / "first", "--steps", "9")
    failed = start(dataset, folder / "second <b>", "--steps", "9", "--optim.base-lr", "1e30", "--optim.max-skipped", "4")
    assert failed.wait() == [1], failed.text()
    return [folder / "first", folder / "second <b>"]


def test_a_page_compares_runs(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.html"
    assert report.main([*map(str, runs), "--out", str(file)]) == 0
    assert capsys.readouterr().out.strip() == str(file)
    page = Page(file.read_text())
    assert page.tags.count("img") == 1
    assert "second <b>" in page.text  # its name, not a tag
    assert "complete, 9 steps" in page.text
    assert "--optim.base-lr" in page.text and "1e+30" in page.text
    assert "--views.mask-ratio" not in page.text  # the same in both
    assert "steps that were skipped" in page.text
    first = RunRecord.read(runs[0])
    assert first.restarts == [4]
    assert (first.complete, first.total_steps, len(first.lines)) == (True, 9, 9)
    assert f"{np.mean([line['loss'] for line in first.lines[-1:]]):.4f}" in page.text
    assert file.read_text().count("stroke-dasharray") == 9  # of the restart, in each chart


def test_what_is_left_out_is_told_and_classes_are_kept(runs: list[Path]) -> None:
    assert RunRecord.read(runs[0]).notices[0] == "10 clips of split train (left out: 2 val)"
    assert "first: 10 clips of split train (left out: 2 val)" in Page(report.page([RunRecord.read(runs[0])])).text
    assert RunRecord.read(runs[0]).starts[-1]["dataset"]["clips"] == 10
    for folder in (runs[0], *(runs[0] / "checkpoints").glob("step-*")):
        assert json.loads((folder / "label_map.json").read_text()) == ["a", "b"]
    assert not (runs[1] / "label_map.json").exists()


def test_no_page_takes_the_place_of_a_datasets_own(runs: list[Path], dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (dataset / "report.html").read_bytes()
    assert report.main([str(runs[0]), "--out", str(dataset / "report.html")]) == 2
    assert "which is a dataset" in capsys.readouterr().err
    assert (dataset / "report.html").read_bytes() == before


def test_a_run_in_work(runs: list[Path], tmp_path: Path) -> None:
    """Its last line may be half written."""
    folder = tmp_path / "run"
    shutil.copytree(runs[0], folder)
    (folder / "complete").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:6]) + "\n" + lines[6][:40])
    record = RunRecord.read(folder)
    assert record.steps.tolist() == [1, 2, 3, 4, 5, 6]
    assert record.hours[-1] * 3600 == pytest.approx(sum(json.loads(line)["seconds"] for line in lines[:6]))
    assert "67% of 9 steps" in report.page([record])


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main([str(tmp_path)]) == 2
    assert f"{tmp_path} has no metrics.jsonl" in capsys.readouterr().err
    assert report.main([]) == 2


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("span", [(0.61, 1.07), (0.013, 8.0), (3.2, 3.2), (1e-6, 1e6), (0.0, 7.5e-4), (99.0, 101.0)])
def test_an_axis_fits_and_has_few_round_ticks(span: tuple[float, float], log: bool) -> None:
    drawn = lines([Curve(name="a", colour="c0", x=np.arange(2.0), y=np.array(span))], "step", noisy=False, log=log)
    texts = [text for text in re.findall(r'anchor: end"[^>]*>([^<]*)</text>', drawn) if text != "step"]
    ticks = [float(text.replace("−", "-").replace(",", "").replace(" M", "e6")) for text in texts]
    assert 2 <= len(ticks) <= 12 and ticks == sorted(set(ticks))
    assert log or (ticks[0] <= span[0] and ticks[-1] >= span[1])
    assert drawn == lines([Curve(name="a", colour="c0", x=np.arange(2.0), y=np.array(span))], "step", noisy=False, log=log)


def test_a_long_curve_keeps_its_spikes() -> None:
    y = np.zeros(100_000)
    y[54_321] = 9.0
    x, shown = thinned(np.arange(100_000.0), y)
    assert len(x) <= 400 and (np.diff(x) > 0).all()
    assert x[shown.argmax()] == 54_321
    drawn = lines([Curve(name="a & b", colour="c0", x=np.arange(100_000.0), y=y)], "step")
    assert len(drawn) < 30_000 and "a &amp; b" in drawn
    nothing = lines([Curve(name="a", colour="c0", x=np.arange(3.0), y=np.full(3, np.nan))], "step")
    assert nothing == '<p class="note">Nothing was logged.</p>'
