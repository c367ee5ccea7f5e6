"""What is installed: one name, `tubecell`, with all that a user needs, beside his own modules; that name in the checkout."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import import_module
from pathlib import Path

import pytest

from setup import under_one_name
from tests.test_console import entries
from tests.train.trainers import SMALL, losses
from tubecell.__main__ import main, programs

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("benchmarks", "dataset_builders", "model", "pipeline", "train", "tubecell", "pyproject.toml", "setup.py", "README.md")


def test_a_module_has_two_names_in_the_checkout_and_is_one() -> None:
    module = import_module("tubecell.pipeline.sampling.recipe")
    assert module is import_module("pipeline.sampling.recipe") and module.__spec__.name == "pipeline.sampling.recipe"
    assert pickle.loads(b"ctubecell.pipeline.sampling.recipe\nSamplingRecipe\n.") is module.SamplingRecipe


def test_a_module_of_the_users_that_hides_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.py").touch()
    told = run(sys.executable, "-c", "import tubecell.model.config", cwd=tmp_path, status=1, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert f"{tmp_path}/model.py" in told and "rename it, or install" in told


def test_every_entry_file_is_a_program() -> None:
    found = programs()
    files = {ROOT / (module.replace(".", "/") + ".py") for module, _ in found.values()}
    assert files == {file for file in entries() if file.parent.parent == ROOT}
    assert {"build", "verify", "pretrain", "report", "throughput"} <= found.keys()


def test_every_program_is_listed_once_and_in_its_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tubecell"])
    assert main() == 0
    _, datasets, models, measurements = re.split("\n\n(?:datasets|models|measurements).*\n", capsys.readouterr().out)
    listed = [line.split()[0] for group in (datasets, models, measurements) for line in group.splitlines()]
    assert listed == list(programs())
    for name, group in (("verify", datasets), ("pretrain", models), ("throughput", measurements)):
        assert f"\n  {name} " in f"\n{group}"


def test_a_program_explains_its_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that stand in its own file, too."""
    monkeypatch.setattr(sys, "argv", ["tubecell", "throughput", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "Folder of video files at any depth" in capsys.readouterr().out


def test_a_name_that_a_wheel_does_not_have_ends_its_build() -> None:
    for code in ("import train.config", '"from train.config import x"', "def f():\n    'See train.config.'"):
        with pytest.raises(SystemExit, match=r"file.py, line \d: train.config has another name"):
            under_one_name(code, "file.py")
    fine = 'from tubecell.model import config\n"model.safetensors, train.csv"\nx = model.config\n'
    assert under_one_name(fine.replace("tubecell.", ""), "file.py") == fine
    for file in (file for package in PARTS[:6] for file in (ROOT / package).rglob("*.py")):
        under_one_name(file.read_text(), str(file))


@pytest.mark.parametrize("script", ["train/pretrain.py", "dataset_builders/build_dataset.py", "benchmarks/throughput.py"])
def test_outside_of_the_environment_a_line_says_what_to_do(script: str, tmp_path: Path) -> None:
    told = run(sys.executable, "-S", str(ROOT / script), cwd=tmp_path, status=1)
    assert told.count("\n") == 1 and "is not installed for" in told and "`make install`" in told


@pytest.mark.slow
@pytest.mark.timeout(1200)  # beside other programs; it takes two minutes
def test_an_installed_copy_does_all_without_the_checkout(tmp_path: Path) -> None:
    checkout, user = tmp_path / "checkout", tmp_path / "user"
    checkout.mkdir()
    for part in PARTS:
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, checkout / part)
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path), ".", cwd=checkout)
    shutil.rmtree(checkout)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "venv", symlinks=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    ours = str(tmp_path / "venv" / "bin" / "python")
    run(*pip, "--python", ours, "install", "--no-deps", "--ignore-installed", "--no-index", str(wheel), cwd=tmp_path)
    installed = {file for file in site.rglob("*") if "__pycache__" not in file.parts}
    assert {file.name.partition("-")[0] for file in site.iterdir()} == {"tubecell", "dependencies.pth"}
    assert {"augment.c", "resize.c", "report.css", "run.sbatch"} <= {file.name for file in installed}

    user.mkdir()
    for package in PARTS[:5]:  # a researcher's own, which nothing of ours may import
        (user / f"{package}.py").write_text("raise AssertionError('not to be imported')")

    def tubecell(*command: str, launcher: str = f"{tmp_path}/venv/bin/tubecell") -> None:
        run(*launcher.split(), *command, cwd=user)

    tubecell("generate-clips", "--out", "videos", "--clips", "12")
    tubecell("build", "--folder", "own=videos", "--out", "dataset", "--clips-per-shard", "5")
    tubecell("verify", "dataset", "--sample", "2")
    train = ("pretrain", *SMALL, "--save-every", "2", "--data", "dataset", "--out", "run")
    tubecell(*train, "--steps", "5", "--save-in-background")
    torchrun = f"{ours} -m torch.distributed.run --standalone --nproc-per-node 1 -m tubecell"
    tubecell(*train, "--steps", "7", launcher=torchrun)
    tubecell("report", "run")
    assert sorted(losses(user / "run")) == [1, 2, 3, 4, 5, 6, 7]
    first, second = json.loads((user / "run" / "environment.json").read_text())
    assert (first["commit"], second["first_step"]) == (None, 5) and "crops: " in first["decoder"]
    for file in (file for part in ("dataset", "run") for file in (user / part).rglob("*") if file.is_file()):
        assert not (found := re.search(rb"tubecell\.\w+\.\w+", file.read_bytes())), f"{file}: {found}"
    assert installed == {file for file in site.rglob("*") if "__pycache__" not in file.parts}, "it may be read-only"


def run(*command: str, cwd: Path, status: int = 0, **environment: str) -> str:
    """What a command says, on either stream, in an environment that knows nothing of the checkout."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": "", **environment}, stdout=-1, stderr=-2, text=True
    )
    assert done.returncode == status, done.stdout
    return done.stdout
