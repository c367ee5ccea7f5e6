import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import learning
from benchmarks.evidence import clips, grid, tables
from benchmarks.evidence.book import Book
from benchmarks.evidence.cell import Cell
from benchmarks.evidence.grid import Ablated, Accuracy, Compared, Variant
from benchmarks.evidence.runner import OutOfTimeError, Runner
from train.command_line import from_command_line
from train.recipes import finetuning, pretraining


def drawing(name: str, *words: "str | Cell", clips: int = 2) -> Cell:
    """A cell that is quick: a few frames are drawn, and counted."""
    line = ("generate-clips", "--clips", str(clips), "--size", "32x32", "--frames", "2", *words)
    return Cell(name, line, lambda folder: {"files": len(list(folder.rglob("*.mp4")))}, "slide-right")


def runner_of(folder: Path, minutes: float | None = None) -> Runner:
    return Runner(folder / "runs", Book(folder / "learning.jsonl"), 2, minutes)


def test_a_cell_is_run_once_and_says_how(tmp_path: Path) -> None:
    cell = drawing("a/b")
    assert runner_of(tmp_path).figures(cell) == {"files": 2}
    record = json.loads((tmp_path / "learning.jsonl").read_text())
    assert record["cell"] == "a/b" and record["commit"] and "core" in record["machine"]
    assert record["command"] == "tubecell generate-clips --clips 2 --size 32x32 --frames 2 --out RUNS/a/b"
    without_time = runner_of(tmp_path, minutes=0)
    assert without_time.figures(cell) == {"files": 2}  # on record
    with pytest.raises(OutOfTimeError):  # another command's figures are not its
        without_time.figures(drawing("a/b", clips=3))


def test_what_a_cell_needs_is_made_on_this_machine(tmp_path: Path) -> None:
    need = drawing("need", clips=1)
    cell = Cell("cell", ("verify", need), lambda folder: {"there": 1.0}, "proof")
    runner = runner_of(tmp_path)
    assert cell.needs == [need]
    assert cell.command(tmp_path)[1] == str(tmp_path / "need")
    with pytest.raises(RuntimeError, match=r"cell ended with status 2:(?s:.*)tubecell verify RUNS/need --out RUNS/cell"):
        runner.figures(cell)  # verify has no --out
    assert len(list((tmp_path / "runs" / "need").rglob("*.mp4"))) == 1


def test_a_record_is_of_all_that_was_before_it(tmp_path: Path) -> None:
    """The words of a cell may be the same while what it needs has become another."""
    book = Book(tmp_path / "learning.jsonl")
    before, after = (Cell("b", ("verify", drawing("a", clips=clips)), lambda folder: {}, "proof") for clips in (1, 2))
    assert before.said == after.said
    book.add(before, {"x": 1.0})
    assert book.figures(before) == {"x": 1.0} and book.figures(after) is None
    other = Book(tmp_path / "learning.jsonl")
    other.add(drawing("c"), {"x": 2.0})
    book.add(drawing("d"), {"x": 3.0})  # of a book that was read before
    assert {"b", "c", "d"} == {json.loads(line)["cell"] for line in (tmp_path / "learning.jsonl").read_text().splitlines()}


def test_folders_stay_until_there_is_time_and_others_folders_always(tmp_path: Path) -> None:
    runner_of(tmp_path).figures(drawing("a", clips=1))
    with pytest.raises(OutOfTimeError):
        runner_of(tmp_path, minutes=0).figures(drawing("a", clips=2))
    assert len(list((tmp_path / "runs" / "a").rglob("*.mp4"))) == 1
    assert runner_of(tmp_path).figures(drawing("a", clips=2)) == {"files": 2}
    (tmp_path / "runs" / "mine").mkdir()
    with pytest.raises(RuntimeError, match="mine is no folder of this grid"):
        runner_of(tmp_path).figures(drawing("mine"))


def test_what_is_stopped_goes_on(tmp_path: Path) -> None:
    many = Cell("a", ("generate-clips", "--clips", "400"), lambda folder: {"files": len(list(folder.rglob("*.mp4")))}, "all")
    runner = runner_of(tmp_path, minutes=0.05)
    assert runner.all([lambda runner: runner.figures(many)]) == [] and runner.waiting == 1
    part = len(list((tmp_path / "runs" / "a").rglob("*.mp4")))
    assert part < 400
    less = replace(many, words=("generate-clips", "--clips", str(part + 1)), proof="slide-right")
    (tmp_path / "runs" / "a" / "command").write_text(less.digest)
    assert runner_of(tmp_path).figures(less)["files"] >= part


def test_a_failure_does_not_keep_the_others(tmp_path: Path) -> None:
    runner = runner_of(tmp_path)
    bad = Cell("bad", ("generate-clips", "--clips", "0"), lambda folder: {}, "proof")
    assert runner.all([lambda runner, cell=cell: runner.figures(cell) for cell in (bad, drawing("good"))]) == [{"files": 2}]
    assert len(runner.failed) == 1 and "at least 1 and 0 are needed" in runner.failed[0]


def test_without_time_nothing_begins_and_the_figures_wait(tmp_path: Path) -> None:
    runner = runner_of(tmp_path, minutes=0)
    with pytest.raises(OutOfTimeError):
        runner.figures(drawing("a"))
    assert runner.all([lambda runner: runner.figures(drawing("a")), lambda runner: 7]) == [7]
    assert runner.waiting == 1
    assert not list((tmp_path / "runs").rglob("*.mp4"))


def test_a_spoilt_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "learning.jsonl").write_text('{"cell": "a", "figures": {}, "command": ""}\nhalf of a li')
    with pytest.raises(ValueError, match=r"learning.jsonl, line 2: no record of a cell"):
        Book(tmp_path / "learning.jsonl")


def test_every_command_of_the_grid_is_one(tmp_path: Path) -> None:
    """All flags are known, and what cannot be is not in it."""
    data = grid.Data(tmp_path)
    names = set()
    for variant in grid.VARIANTS:
        cell = grid.pretraining(data.all, variant.name, 0, grid.SHORT_STEPS, variant.flags)
        config = from_command_line(pretraining.RECIPES, [str(word) for word in cell.words[1:]])
        assert config.tokens.visible < 64
        names.add((variant.name, variant.flags))
    assert len({name for name, _ in names}) == len(names)  # no two variants in one folder
    mmac, kilobytes = grid.costs(cell)  # of one: two seconds
    assert mmac > 1 and kilobytes > 10
    tuned = grid.finetuning("a", data.all, 5, grid.RATES[0], 0, None)
    assert from_command_line(finetuning.RECIPES, [str(word) for word in tuned.words[1:]]).crop == "multi_scale"


def test_labels_are_of_one_seed_alone() -> None:
    """Six seeds, as many as are allowed, have clips enough."""
    in_a_class = clips.TRAIN // clips.MOTIONS
    assert clips.SHARES[100] == in_a_class
    assert all(6 * clips.SHARES[share] <= in_a_class for share in (5, 20))


def test_tables_have_means_and_spreads() -> None:
    found = [Accuracy("scratch", 5, top1, "8e-3") for top1 in (0.1, 0.2)]
    found.append(Accuracy("pretrained", 100, 0.75, "8e-3"))
    table = tables.labels_table(found).splitlines()
    assert table[0] == "|  | 5 % of the labels | 100 % of the labels |"
    assert table[2:] == ["| from scratch | 15.0 ± 7.1 (2) | – |", "| pre-trained, fine-tuned | – | 75.0 |"]
    default, other = Variant("masks", "tube, 75 %", (), 67.3), Variant("masks", "tube, 90 %", ("--x", "1"))
    rows = [Ablated(default, 0.5, 200.0, 3.0, 40.0), Ablated(other, 0.25, 300.0, 2.0, 30.0)]
    assert tables.ablation_table(rows, "masks").splitlines()[2:] == [
        "| **tube, 75 %** | 50.0 | 3.0 | 40 | 200 (1.00 x) | 67.3 |",
        "| tube, 90 % | 25.0 | 2.0 | 30 | 300 (1.50 x) | – |",
    ]
    folds = [Compared("scratch", 0.5, 10), Compared("scratch", 1.0, 30)]
    assert tables.compared_table(folds, "by fold").splitlines()[2:] == ["| scratch | 87.5 | 50, 100 | 40 |"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "7"], "--seeds and --ablation-seeds must be 1 to 6"),
        (["--minutes", "-1"], "--minutes -1: it must be at least 0"),
        (["--jobs", "0"], "--jobs 0: it must be at least 1"),
    ],
)
def test_impossible_options_are_named(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert learning.main(flags) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_grid_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every part, of a few clips and steps; then the tables alone, from the record."""
    for name, value in {"TRAIN": 80, "VAL": 20, "TEST": 20, "SHARES": {5: 4, 20: 5, 100: 8}}.items():
        monkeypatch.setattr(clips, name, value)
    monkeypatch.setattr(grid, "STEPS", {5: 2, 20: 2, 100: 2})
    monkeypatch.setattr(grid, "PRETRAIN_STEPS", 3)
    monkeypatch.setattr(grid, "LONG", 5)
    monkeypatch.setattr(grid, "SHORT_STEPS", 2)
    monkeypatch.setattr(
        grid,
        "VARIANTS",
        [
            each
            for each in grid.VARIANTS
            if each.title in ("tube, 75 %", "running cell, 50 %", "frame, 75 %", "2 blocks", "normalised pixels, squared")
        ],
    )
    monkeypatch.setattr(learning, "shared_clips", lambda: None)
    flags = ["--seeds", "1", "--shares", "5", "20", "--folder", str(tmp_path), "--results", str(tmp_path / "results")]
    assert learning.main(flags) == 0
    assert "wait" not in capsys.readouterr().out
    pages = [tmp_path / "results" / name for name in ("learning.md", "ablations.md")]
    before = [page.read_text() for page in pages]
    assert "| frozen encoder, linear probe |" in before[0] and "sees one frame" in before[0]
    assert "| **tube, 75 %** |" in before[1]
    assert (tmp_path / "results" / "learning.png").stat().st_size > 5000
    assert (tmp_path / "results" / "ablations.png").stat().st_size > 5000
    for page in pages:
        page.unlink()
    assert learning.main([*flags, "--minutes", "0"]) == 0
    assert [page.read_text() for page in pages] == before


@pytest.mark.slow
def test_one_frame_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A classifier of the same size that sees one frame of a clip stays at chance; two standard errors of 1,500 clips are 1.5
    points."""
    for name, value in {"TRAIN": 1500, "VAL": 50, "TEST": 1500}.items():
        monkeypatch.setattr(clips, name, value)
    monkeypatch.setattr(grid, "LONG", 600)
    clips.generated(tmp_path / "clips", ())
    _, top1 = grid.one_frame(grid.Data(tmp_path / "clips"), runner_of(tmp_path))
    assert abs(top1 - tables.CHANCE) < 0.03 + 0.015
