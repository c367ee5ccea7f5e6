"""What older code made goes on, by the command that it was begun with, bit for bit.

tests/older/DATE.tar.xz, made by the code of that day, with relative paths; it is unpacked where the commands run:

    videos/       13 files, one of them no video       dataset/   a build of them: 12 clips, 4 shards
    half-built/   the same build, killed after its first shard
    folder/  window/  ledger/   runs of 12 steps, as they lay after step 8: shuffled globally, in windows, and one whose ledger
                                has a clip that failed at a position after step 8, but is sound now
    expected.json   {run: digests of the batches of steps 9 to 12, their losses, the ledger}
"""

import hashlib
import itertools
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataset_builders import build_unlabeled_hybrid, verify
from pipeline.loader import ClipLoader
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.storage.columns import read_rows
from pipeline.storage.manifest import Manifest
from tests.dataset_builders.small_videos import tree
from tests.train.trainers import Trainer, be_rank, lines, no_fault
from train.checkpoint.state import read_progress

DATES = ["2026-11-28"]
RUNS = ["folder", "window", "ledger"]


@pytest.fixture(params=DATES)
def older(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, which is the current one."""
    with tarfile.open(Path(__file__).parent / "older" / f"{request.param}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command_of(run: Path) -> list[str]:
    """That the run was begun with, without the program."""
    return json.loads((run / "environment.json").read_text())[0]["command"][1:]


def go_on(run: Path, *more: str) -> str:
    """The same command again -> what it said."""
    trainer = Trainer(run, be_rank, [([*command_of(run), *more], {}, no_fault)])
    assert trainer.wait() == [0], trainer.text()
    return trainer.text()


def batches(loader: ClipLoader, number: int) -> list[str]:
    digests = []
    for batch in itertools.islice(loader, number):
        digest = hashlib.blake2b(digest_size=16)
        for tensor in (batch.views, batch.visible, batch.decoded, batch.loss_weight, batch.rows):
            digest.update(tensor.numpy().tobytes())
        digests.append(digest.hexdigest())
    loader.close()
    return digests


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on(name: str, older: Path) -> None:
    expected: dict[str, Any] = json.loads((older / "expected.json").read_text())[name]
    run = older / name
    state = read_progress(run / "checkpoints" / "step-00000008").loader
    assert [list(entry) for entry in state.ledger] == expected["ledger"]
    # in somebody's own trainer, whose recipe has never heard of an arithmetic
    asked = {key: value for key, value in state.recipe.items() if key != "arithmetic"}
    loader = ClipLoader("dataset", SamplingRecipe(**asked), state=state, workers=1)
    assert loader.recipe.arithmetic == 1
    assert batches(loader, 4) == expected["batches"]

    said = go_on(run)
    assert "changed since" not in said, said
    losses = {line["step"]: line["loss"] for line in lines(run / "metrics.jsonl")}
    assert list(losses) == list(range(1, 13))
    # the batches are equal to the bit; the last digits of a product hang on the processor
    assert [losses[step] for step in range(9, 13)] == pytest.approx(expected["losses"], rel=1e-5)
    assert json.loads((run / "config.json").read_text())["views"]["arithmetic"] == 1
    assert read_progress(run / "checkpoints" / "step-00000012").loader.recipe["arithmetic"] == 1
    assert "is done: 12 steps" in go_on(run)  # config.json is today's now


def test_a_run_refuses_another_arithmetic_and_stays_as_it_was(older: Path) -> None:
    before = (older / "folder" / "config.json").read_bytes()
    trainer = Trainer(older / "folder", be_rank, [([*command_of(older / "folder"), "--views.arithmetic", "2"], {}, no_fault)])
    assert trainer.wait() == [2]
    assert "holds another run: --views.arithmetic 1 -> 2." in trainer.text()
    assert (older / "folder" / "config.json").read_bytes() == before


def test_flags_that_were_renamed_go_on_working(older: Path) -> None:
    """What --loader.workers was called before."""
    config = older / "folder" / "config.json"
    config.write_text(config.read_text().replace('"workers"', '"threads"'))
    command = older / "folder" / "environment.json"
    command.write_text(command.read_text().replace("--views.workers", "--views.threads"))
    said = go_on(older / "folder")
    assert said.count("--views.threads is called --loader.workers now") == 1
    assert "changed since" not in said


@pytest.mark.parametrize(
    ("begun", "again", "steps"),
    [
        # `tiny --epochs 1` ran the recipe's 1500 steps (here: 12), and so did `--steps 12 --epochs 1`: they go on to them
        ("--epochs 1", "--epochs 1", 12),
        ("--steps 12 --epochs 1", "--steps 12 --epochs 1", 12),
        # where the epochs were the recipe's, who names them wants them: 5 of 3 steps
        ("--steps 12", "--epochs 5", 15),
    ],
)
def test_epochs_that_code_then_took_no_notice_of(begun: str, again: str, steps: int, older: Path) -> None:
    config, command = (older / "folder" / name for name in ("config.json", "environment.json"))
    config.write_text(config.read_text().replace('"epochs": 300', f'"epochs": {again.rpartition(" ")[2]}'))
    starts = json.loads(command.read_text())
    place = starts[0]["command"].index("--steps")
    rest = starts[0]["command"][:place] + starts[0]["command"][place + 2 :]
    command.write_text(json.dumps([{**starts[0], "command": [*rest, *begun.split()]}]))
    trainer = Trainer(older / "folder", be_rank, [([*rest[1:], *again.split()], {}, no_fault)])
    assert trainer.wait() == [0], trainer.text()
    assert lines(older / "folder" / "metrics.jsonl")[-1]["step"] == steps
    assert ("takes none now: it has 12 steps" in trainer.text()) == (steps == 12)


def test_any_field_may_be_missing(older: Path) -> None:
    """What a file lacks means what code before the field did, or its default."""
    go_on(older / "folder")
    file = older / "folder" / "config.json"
    whole = json.loads(file.read_text())
    fewer = {name: value for name, value in whole.items() if name in ("model", "data", "out", "steps")}
    views = {name: whole["views"][name] for name in ("views_per_step", "views_per_clip", "arithmetic")}
    file.write_text(json.dumps({**fewer, "views": views, "optim": {}, "compute": {}}))
    assert "is done: 12 steps" in go_on(older / "folder")


def test_a_field_of_newer_code_is_refused(older: Path) -> None:
    file = older / "folder" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "model": {**config["model"], "rope": True}}))
    trainer = Trainer(older / "folder", be_rank, [(command_of(older / "folder"), {}, no_fault)])
    assert "--model.rope, which this tubecell does not know (update it)" in trainer.said(2)


def test_a_dataset_is_done_and_a_half_built_one_becomes_the_same(older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--folder", "own=videos", "--clips-per-shard", "4", "--workers", "1"]
    whole = tree(older / "dataset")
    assert verify.main(["dataset"]) == 0
    assert build_unlabeled_hybrid.main([*options, "--out", "dataset"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert tree(older / "dataset") == whole
    first = (older / "half-built" / "shards" / "own-000000.tar").read_bytes()
    assert build_unlabeled_hybrid.main([*options, "--out", "half-built"]) == 0
    said = "half-built goes on with what h264-fast was when it was begun; that is called h264-plain now"
    assert said in capsys.readouterr().out
    finished = tree(older / "half-built")
    assert finished["shards/own-000000.tar"] == first
    tables = {name for name in whole if name.endswith(".parquet") and "/" not in name}  # of format 2
    for name in whole.keys() - {"dataset.json"} - tables:  # dataset.json names the folder
        assert finished[name] == whole[name], name
    for name in tables:
        was, now = read_rows(older / "dataset" / name), read_rows(older / "half-built" / name)
        assert now.select(was.column_names).equals(was), name
        assert pq.read_schema(older / "dataset" / name).field("path").type == pa.binary()
        assert pq.read_schema(older / "half-built" / name).field("path").type == pa.string()
    assert Manifest("half-built").fingerprint == Manifest("dataset").fingerprint
    assert json.loads(finished["dataset.json"])["options"]["preset"] == "h264-plain"
    for asked, told in (("h264-fast", True), ("h264-plain", False)):  # the command of then, and who knows today's name
        assert build_unlabeled_hybrid.main([*options, "--preset", asked, "--out", "half-built"]) == 0
        out = capsys.readouterr().out
        assert "nothing to do" in out and (said in out) is told
    file = older / "half-built" / ".build" / "options.json"
    file.write_text(file.read_text().replace("-bf 0", "-bf 5"))
    assert build_unlabeled_hybrid.main([*options, "--out", "half-built"]) == 2
    assert "begun with preset h264-fast, which was -c:v libx264 -preset medium -crf 23 -tune fastdecode -bf 5 -g 32" in (
        capsys.readouterr().err
    )


def test_a_dataset_grows_by_the_same_command(older: Path) -> None:
    shutil.copy(older / "videos" / "clip03.mp4", older / "videos" / "new.mp4")
    before = Manifest("dataset").fingerprint
    assert build_unlabeled_hybrid.main(["--folder", "own=videos", "--clips-per-shard", "4", "--out", "dataset"]) == 0
    assert [version["rows"] for version in Manifest("dataset").versions] == [12, 13]
    assert Manifest("dataset", 1).fingerprint == before
    rows = {row["path"]: row["content_hash"] for row in read_rows(Path("dataset/manifest.parquet")).to_pylist()}
    assert rows[b"new.mp4"] == rows[b"clip03.mp4"]  # by FFmpeg's arguments of then
    assert pq.read_schema("dataset/manifest.parquet").field("path").type == pa.string()
    assert verify.main(["dataset"]) == 0


def test_options_that_older_code_did_not_know_had_their_default(older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = older / "dataset" / ".build" / "options.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in known.items() if name != "canvas"}))
    options = ["--folder", "own=videos", "--clips-per-shard", "4", "--out", "dataset"]
    assert build_unlabeled_hybrid.main([*options, "--canvas", "64x64"]) == 2
    assert "--canvas was  and is now 64x64" in capsys.readouterr().err
    assert build_unlabeled_hybrid.main(options) == 0
    now = json.loads(file.read_text())
    assert "-bf 0 -g 32" in now.pop("encoder")
    assert now == known


def test_a_build_file_with_a_name_of_before(older: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (older / "build.toml").write_text(
        'out = "labelled"\n[sources.own]\nkind = "folder"\nfolder = "videos"\nlabel_from_folder = true\n'
    )
    assert build_unlabeled_hybrid.main(["--config", "build.toml", "--plan"]) == 0
    said = capsys.readouterr()
    assert said.err.count("build.toml: label_from_folder is called labels_from_folder now") == 1
