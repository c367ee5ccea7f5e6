"""Retrieval: clips and captions of their motions, a text tower made on the spot, and what they find of each other."""

import csv
import json
import shutil
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.manifest_rows import with_columns
from tests.train.retrieval.towers import save_tokenizer, sizes
from tests.train.trainers import lines, losses, run, start
from train.checkpoint.source import read_source
from train.command_line import from_command_line
from train.compute.memory import cost_of
from train.recipes.retrieving import RECIPES
from train.retrieval import evaluation
from train.retrieval.pairs import WAYS
from train.retrieval.text_folder import KEPT
from train.run.dry_run import describe
from train.stages.retrieving import Retrieving

FILE = Path(__file__).resolve().parents[2] / "train" / "retrieve.py"
SAID = {
    "slide-right": ("a shape moves to the right", "it slides right"),
    "slide-left": ("a shape moves to the left", "it slides left"),
    "fall": ("a shape falls down", "it moves down"),
    "rise": ("a shape rises", "it moves up"),
    "sway": ("a shape sways to the left and to the right", "it swings"),
    "bob": ("a shape bobs up and down", "it moves up and down"),
    "pulse": ("a shape swells and shrinks", "it pulses"),
    "rest": ("a shape rests", "it does not move"),
}
CLIP = ("--size", "40x40", "--frames", "12", "--fps", "7.5")


def make_tower(folder: Path, words: set[str]) -> Path:
    """A text tower of 32 values a token, with a tokenizer of these words."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(**sizes(save_tokenizer(folder, sorted(words), ends=False)))
    transformers.BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = {word for said in SAID.values() for text in said for word in text.split()}
    return make_tower(tmp_path_factory.mktemp("text") / "tower", words)


def captioned(folder: Path, motions: int, train: int, val: int) -> Path:
    """A dataset of generated clips, each with two sentences about its motion."""
    from dataset_builders import build_dataset, generate_clips

    rows = [("path", "caption", "split")]
    for seed, (split, clips) in enumerate({"train": train, "val": val}.items()):
        given = ("--clips", str(clips), "--motions", str(motions), "--seed", str(seed), *CLIP)
        assert generate_clips.main(["--out", str(folder / split), *given]) == 0
        files = sorted((folder / split).rglob("*.mp4"))
        rows += [(str(file), text, split) for file in files for text in SAID[file.parent.name]]
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    given = ("--out", str(folder / "dataset"), "--preset", "copy", "--min-frames", "8", "--workers", "1")
    given += ("--sampling", "seconds:0.133333")  # each frame of them
    assert build_dataset.main(["--list", f"own={folder / 'list.csv'}", *given]) == 0
    return folder / "dataset"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioned(tmp_path_factory.mktemp("captioned"), 4, 20, 8)


def options(tower: Path) -> list[str]:
    few = ("--views.views-per-step", "8", "--loader.workers", "1", "--log-every", "1", "--no-save-in-background")
    return ["micro", "--text", str(tower), "--words", "12", *few]


def test_what_is_refused(tower: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--text FOLDER is needed"):
        Retrieving(RECIPES["micro"]())
    with pytest.raises(ValueError, match=r"--text .*nothing must be a local folder"):
        Retrieving(from_command_line(RECIPES, ["micro", "--text", str(tmp_path / "nothing")]))
    config = from_command_line(RECIPES, ["micro", "--text", str(tower), "--compute.views-per-forward", "16"])
    assert config.accumulation(2) == 1
    with pytest.raises(ValueError, match=r"--compute\.views-per-forward 16 must be at least 32"):
        config.accumulation(1)
    stage = Retrieving(from_command_line(RECIPES, ["micro", "--text", str(tower)]))
    with pytest.raises(ValueError, match="--words 32: the text tower takes 16 tokens at most"):
        cost_of(stage)


def test_dry_run(tower: Path) -> None:
    stage = Retrieving(from_command_line(RECIPES, ["micro", "--text", str(tower), "--words", "12"]))
    told = describe(stage, 1)
    assert "1 blocks of 32, 12 tokens" in told and "most views a forward pass" in told
    frozen = Retrieving(from_command_line(RECIPES, ["micro", "--text", str(tower), "--words", "12", "--freeze-text"]))
    assert cost_of(frozen).gmac < cost_of(stage).gmac
    assert cost_of(frozen).gmac + cost_of(frozen).frozen_gmac == pytest.approx(cost_of(stage).gmac)


@pytest.mark.slow
def test_ranks_kills_and_weights_to_begin_with(dataset: Path, tower: Path, tmp_path: Path) -> None:
    given, steps = options(tower), ("--steps", "6", "--evaluate-every", "3", "--save-every", "2")
    run(dataset, tmp_path / "one", *steps, program=FILE, given=given)
    run(dataset, tmp_path / "two", *steps, program=FILE, given=given, ranks=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-3)
    one, two = (lines(tmp_path / name / "evaluations.jsonl") for name in ("one", "two"))
    assert (one[0]["clips"], one[0]["of"], one[0]["missing"]) == (8, 8, [])
    assert one[0]["held_out_chance_r1"] == two[0]["held_out_chance_r1"] == 0.25  # two of the eight clips have a caption
    shown = (tmp_path / "two" / "retrieval.html").read_text()
    assert all(text in shown for text in SAID["slide-left"]) and "data:image/jpeg" in shown
    trainer = start(dataset, tmp_path / "killed", *steps, program=FILE, given=given).until(3).send(signal.SIGKILL)
    assert trainer.wait() == [-signal.SIGKILL]
    run(dataset, tmp_path / "killed", *steps, program=FILE, given=given)
    assert losses(tmp_path / "killed") == losses(tmp_path / "one")
    weights = read_source(tmp_path / "one")
    assert "text.tower.embeddings.word_embeddings.weight" in weights.tensors and weights.kind == "encoder"
    assert not any(name.startswith("text.") for name in weights.encoder())
    again = ("--init", str(tmp_path / "one"), "--steps", "1", "--freeze", "2", "--freeze-text")
    run(dataset, tmp_path / "again", *again, program=FILE, given=given)
    after = read_source(tmp_path / "again").tensors
    same = {name for name, tensor in after.items() if torch.equal(tensor, weights.tensors[name])}
    assert {name for name in after if name.startswith(("text.", "blocks.0.", "blocks.1."))} <= same
    assert "video_projection.weight" not in same
    fingerprints = json.loads((tmp_path / "again" / "descent.json").read_text())
    assert fingerprints[0]["stage"] == "retrieve"


def test_what_cannot_be_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert evaluation.main([*arguments, "--out", str(tmp_path / "result")], RECIPES) == 2
        return capsys.readouterr().err

    assert "is no folder of a run of `tubecell retrieve`" in refused(str(tmp_path / "model.safetensors"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"stage": "finetune", "optim": {}}))
    assert "is a run of `finetune`, not of `retrieve`, and knows no texts; `tubecell evaluate` tells" in refused(str(run))
    config = {"stage": "retrieve", **asdict(replace(RECIPES["micro"](), data="DATA", text=str(tmp_path / "gone")))}
    (run / "config.json").write_text(json.dumps(config, default=str))
    assert f"{run} has no text_tower, as runs of older code have none, and {tmp_path}/gone is not there" in refused(str(run))
    assert "--workers 0 must be at least 1" in refused(str(run), "--workers", "0")
    assert not (tmp_path / "result").exists()


@pytest.mark.slow
def test_a_finished_run_is_evaluated_without_its_tower(
    dataset: Path, tower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "tower", tmp_path / "run"
    shutil.copytree(tower, text)
    steps = ("--steps", "4", "--evaluate-every", "2", "--save-every", "2")
    run(dataset, out, *steps, program=FILE, given=options(text))
    last = lines(out / "evaluations.jsonl")[-1]
    text.rename(tmp_path / "moved")
    assert {file.name for file in (out / KEPT).iterdir()} >= {"config.json", "tokenizer.json", "buffers.safetensors"}

    def evaluated(name: str, *more: str, ranks: int = 1) -> dict:
        given = ["evaluate", str(out), "--workers", "1", *more]
        said = run(None, tmp_path / name, program=FILE, given=given, ranks=ranks)
        assert f"text tower: {out}/{KEPT}, which the run kept of {text}" in said
        return json.loads((tmp_path / name / "evaluation.json").read_text())

    one = evaluated("one", "--split", "val")
    flat = {f"held_out_{way}_{name}": value for way in WAYS for name, value in one[way].items()}
    of_run = {name: value for name, value in last.items() if name.startswith("held_out")}
    assert flat | {"held_out_chance_r1": one["chance_r1"]} == pytest.approx(of_run)
    assert (one["clips"], one["of"], one["texts"], one["missing"]) == (8, 8, 16, [])
    three = evaluated("three", ranks=3)  # of the run's own split
    assert {way: three[way] for way in WAYS} == {way: pytest.approx(one[way]) for way in WAYS}
    assert "data:image/jpeg" in (tmp_path / "three" / "evaluation.html").read_text()
    # killed: some of the clips are there, in a part
    table, parts = pq.read_table(tmp_path / "one" / "videos.parquet"), tmp_path / "killed" / "parts"
    parts.mkdir(parents=True)
    pq.write_table(table.slice(3), parts / f"part-{table['row'][3].as_py():09d}.parquet")
    more = evaluated("killed", "--split", "val")
    assert {way: more[way] for way in WAYS} == {way: pytest.approx(one[way]) for way in WAYS}
    assert pq.read_table(tmp_path / "killed" / "videos.parquet")["row"].to_pylist() == table["row"].to_pylist()
    given = [str(out), "--out", str(tmp_path / "one")]
    assert evaluation.main([*given, "--split", "all"], RECIPES) == 2 and "give another --out" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    none = with_columns(dataset, tmp_path / "none", extra=[None] * 28)
    assert evaluation.main([*given, "--data", str(none)], RECIPES) == 2
    assert f"--split val: none of its 8 clips of {none} has a caption" in capsys.readouterr().err
    # the run itself goes on without the tower, too
    said = run(dataset, out, "--steps", "6", *steps[2:], program=FILE, given=options(text))
    assert "those that the run kept of" in said and list(losses(out)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_captions_of_motions_find_their_clips(tower: Path, tmp_path: Path) -> None:
    """Eight motions, of which no frame tells any: a caption's share of the clips is an eighth."""
    dataset, out = captioned(tmp_path, 8, 512, 80), tmp_path / "run"
    given = ["micro", "--text", str(tower), "--words", "12", "--evaluate-every", "400", "--loader.workers", "1"]
    said = run(dataset, out, program=FILE, given=given)
    found = lines(out / "evaluations.jsonl")[-1]
    print(said.splitlines()[-3:], found)
    assert found["held_out_chance_r1"] == pytest.approx(1 / 8)
    # after 200 steps nothing is learned yet, after 400 text to video is 0.375, mAP 0.365
    for way in ("text_to_video", "video_to_text"):
        assert found[f"held_out_{way}_r1"] >= 2 / 8, found
        assert found[f"held_out_{way}_map"] > 0.28, found
