"""examples/: the loader in other people's trainers, as a user starts them, on two ranks."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"benchmarks", "dataset_builders", "model", "pipeline", "tests", "train", "tubecell"}


def torchrun(ranks: int, example: str, *arguments: str | Path) -> str:
    """A run that succeeds -> what it said."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            f"{ranks}",
            ROOT / "examples" / example,
        ]
        + [str(argument) for argument in arguments],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("12 clips of split train (left out: 7 val)") == 1 and "WORLD_SIZE" not in done.stdout, done.stdout
    return done.stdout


def losses(said: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"(?:epoch|step) (\d+): loss ([\d.]+)", said)}


def test_examples_know_the_loader_alone_and_are_named_on_its_page() -> None:
    files = sorted((ROOT / "examples").glob("*.py"))
    assert len(files) == 3
    for file in files:
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name for node in nodes}
        ours = {name for name in names if name.split(".")[0] in OURS}
        assert ours and all(name.startswith("tubecell.pipeline.") for name in ours), file
        assert f"`{file.name}`" in (ROOT / "docs" / "loader.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1500)  # beside other programs
@pytest.mark.parametrize(
    ("example", "length", "options"),
    [
        ("ddp_labels.py", ("--epochs", 1, 2), ("--views", "8", "--size", "64")),
        ("vjepa_loop.py", ("--steps", 2, 4), ("--views", "8", "--size", "64", "--dim", "64", "--save-every", "2")),
    ],
)
def test_two_ranks_and_one_that_goes_on_are_one_run(
    labelled: Path, tmp_path: Path, example: str, length: tuple[str, int, int], options: tuple[str, ...]
) -> None:
    """What two ranks and then one do is what one does without a stop: the same clips, labels and masks in each step."""
    flag, half, whole = length
    alone = torchrun(1, example, labelled, tmp_path / "alone.pt", *options, flag, f"{whole}")
    first = torchrun(2, example, labelled, tmp_path / "run.pt", *options, flag, f"{half}")
    second = torchrun(1, example, labelled, tmp_path / "run.pt", *options, flag, f"{whole}")
    assert list(losses(first)) == [half] and list(losses(second)) == [whole]
    assert losses(first) | losses(second) == pytest.approx(losses(alone), rel=2e-5)
    if example == "ddp_labels.py":
        tops = [re.findall(r"top-1 (\d) of 7, 0 of 7 left out", said) for said in (alone, first, second)]
        assert tops[0] == tops[1] + tops[2] and len(tops[0]) == 2


@pytest.mark.slow
@pytest.mark.timeout(1000)  # beside other programs
def test_hugging_faces_trainer_goes_on_in_the_middle_of_an_epoch(labelled: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    run, options = tmp_path / "run", ("--views", "8", "--size", "32", "--dim", "48", "--epochs", "2", "--save-every", "2")

    def history() -> list[dict[str, float]]:
        log = json.loads((run / "checkpoint-6" / "trainer_state.json").read_text())["log_history"]
        return [{name: line[name] for name in ("step", "loss", "eval_loss", "eval_top1") if name in line} for line in log]

    torchrun(2, "hf_trainer.py", labelled, run, *options, "--accumulate", "2")
    whole = history()
    assert [line["step"] for line in whole] == [1, 2, 3, 3, 4, 5, 6]
    for last in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(run / last)
    torchrun(1, "hf_trainer.py", labelled, run, *options)
    again = history()
    assert len(again) == len(whole) and all(line == pytest.approx(of, rel=1e-3) for line, of in zip(again, whole, strict=True))
