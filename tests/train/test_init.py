"""--init: what a run begins with, and what it and its weights say of that."""

import argparse
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from model.classifier import VideoClassifier
from model.initialization import initial_value, initialise
from model.videomae import VideoMAE
from model.weights import metadata_of, read_weights
from tests.train import parallel_cases
from tests.train.begin_cases import begin
from tests.train.parallel_cases import MODEL, SEED
from tests.train.trainers import losses, run, start, start_server
from train import convert, inspect_checkpoints
from train.checkpoint.descent import fingerprint
from train.checkpoint.source import read_source
from train.compute.parallel import started
from train.stages.pretraining import PretrainConfig
from train.targets.features import FeatureTargets


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return opened.metadata()


def on_ranks(number: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `begin` gives on rank 0, in processes whose current folder has the weights."""
    if number == 1:
        monkeypatch.chdir(folder)
        with started("cpu") as ranks:
            return begin(ranks)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    out = folder / f"{number}.pt"
    arguments = [(rank, number, port, out, begin) for rank in range(number)]
    processes = [start_server().Process(target=in_folder, args=(folder, each)) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * number
    found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


def in_folder(folder: Path, arguments: tuple[Any, ...]) -> None:
    os.chdir(folder)
    parallel_cases.run(*arguments)


@pytest.mark.parametrize("number", [1, *(pytest.param(ranks, marks=pytest.mark.slow) for ranks in (3, 4))])
def test_rank_0_reads_and_all_have_the_same(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, in every mesh; a teacher's features are not pixels, so the decoder's head begins anew."""
    model = VideoMAE(MODEL)
    initialise(model, seed=9)
    tensors = model.state_dict()
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(torch.randn(tensor.shape))
    views = argparse.Namespace(input_size=32, num_frames=8)
    official = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"model": official, "args": views}, tmp_path / "weights.pth")
    save_file(tensors, tmp_path / "teacher.safetensors", metadata_of(MODEL))
    for shard, found in on_ranks(number, tmp_path, monkeypatch).items():
        for name, parameter in found["parameters"].items():
            shape = tuple(parameter.shape)
            anew = name.startswith("decoder.head.")
            expected = initial_value(name, shape, SEED, MODEL.patch_values) if anew else tensors[name]
            assert torch.equal(parameter, expected), (shard, name)
        teacher = {name: tensors[f"encoder.{name}"] for name in found["teacher"]}
        assert len(teacher) == sum(name.startswith("encoder.") for name in tensors)
        assert all(torch.equal(tensor, teacher[name].bfloat16()) for name, tensor in found["teacher"].items()), shard
        assert found["fingerprints"] == [{"teacher": fingerprint(teacher)}] * number
        (begun,), others = found["descent"][0], found["descent"][1:]
        assert begun["place"] == "weights.pth" and begun["fingerprint"] == fingerprint(tensors) and not any(others)


@pytest.mark.slow
def test_a_run_goes_on_on_another_dataset_and_says_from_where(
    dataset: Path, labelled: Path, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = shutil.copytree(straight, tmp_path / "mine")
    told = run(labelled, tmp_path / "next", "--steps", "2", "--init", str(mine), "--save-every", "1", "--ema", "0.5", ranks=2)
    begins = f"begins with {mine / 'model.safetensors'}: 2 blocks of 32, patch 8, encoder and decoder; tubecell; 49 tensors"
    assert told.count(begins) == 1
    assert told.count("49 tensors taken") == 1 and "initial values" not in told
    assert losses(tmp_path / "next")[1] < losses(straight)[1] - 0.02
    (first,) = json.loads((tmp_path / "next" / "environment.json").read_text())
    assert first["init"][-1] == "  49 tensors taken"

    # what is exported says what it is, to anybody, and so does what a checkpoint gives
    file = tmp_path / "next" / "model.safetensors"
    weights, said = read_weights(file), metadata(file)
    (begun,) = json.loads(said["descends_from"])
    assert begun["fingerprint"] == fingerprint(load_file(straight / "model.safetensors"))
    assert list(begun.values())[:3] == [
        str(mine / "model.safetensors"),
        "2 blocks of 32, patch 8, encoder and decoder",
        "tubecell",
    ]
    assert [begun[name] for name in ("stage", "recipe", "step")] == ["pretrain", "tiny", "20"]
    assert (weights.layout, weights.config.encoder_heads, weights.config.input_size) == ("tubecell", 2, 32)
    assert [said[name] for name in ("stage", "recipe", "step")] == ["pretrain", "tiny", "2"]
    for name, *ema in (("model",), ("model_ema", "--ema")):
        again = tmp_path / f"{name}.safetensors"
        assert inspect_checkpoints.main([str(tmp_path / "next"), "--consolidate", str(again), *ema]) == 0
        assert again.read_bytes() == (tmp_path / "next" / again.name).read_bytes()
    capsys.readouterr()
    card = (tmp_path / "next" / "card.md").read_text()
    assert f"1. `{mine / 'model.safetensors'}`: " in card and "| seed | 0 |" in card and "48,080 parameters" in card
    assert "Nothing: it began with initial values." in (straight / "card.md").read_text()

    # one that goes on needs neither the flag nor the weights, and has no others; a checkpoint alone knows its descent
    shutil.rmtree(mine)
    (tmp_path / "next" / "descent.json").unlink()
    assert "--init" not in run(labelled, tmp_path / "next", "--steps", "3", "--ema", "0.5")
    assert json.loads(metadata(file)["descends_from"]) == [begun]
    other = start(labelled, tmp_path / "next", "--steps", "4", "--ema", "0.5", "--init", "others.pth").said(2)
    assert f"holds another run: --init {mine} -> others.pth" in other
    (tmp_path / "run.toml").write_text('init = "moved.pth"\nema = 0.5\n')
    told = run(labelled, tmp_path / "next", "--steps", "3", "--config", str(tmp_path / "run.toml"))
    assert f"has init {tmp_path / 'moved.pth'}, but the run goes on with {mine}" in told

    checkpoint = tmp_path / "next" / "checkpoints" / "step-00000003"
    run(dataset, tmp_path / "third", "--steps", "1", "--init", str(checkpoint))
    third = json.loads((tmp_path / "third" / "descent.json").read_text())
    assert [each["step"] for each in third] == ["3", "20"] and third[1] == begun


def test_others_layouts_and_what_does_not_fit(dataset: Path, straight: Path, tmp_path: Path) -> None:
    """A dry run reads them as the run would."""
    weights = read_source(straight)
    torch.save({"model": dict(weights.tensors)}, tmp_path / "official.pth")
    assert convert.main([str(straight), str(tmp_path / "hf"), "--to", "hf"]) == 0

    def dry(place: Path | str, *options: str, code: int = 0) -> str:
        return start(dataset, tmp_path / "run", "--init", str(place), "--dry-run", *options).said(code)

    said = dry(tmp_path / "official.pth")
    assert "official names; 49 tensors" in said and "  49 tensors taken" in said
    assert "taken to be trained on 16 frames of 224 x 224 pixels, which the file does not tell" in said
    assert "--model.positions-frames 16 --model.positions-size 224 interpolates theirs" in said
    asked = ("--model.positions-frames", "16", "--model.positions-size", "224")
    assert "positions are" not in dry(tmp_path / "official.pth", *asked)
    said = dry(tmp_path / "hf", "--model.decoder-depth", "2", "--model.encoder-heads", "4")
    assert "differs: encoder_heads is 4 here, the weights' 2: --model.encoder-heads 2" in said
    assert "not taken: " in said and "the decoder is another: it has another number of blocks" in said
    assert "positions are" not in said
    assert "does not fit the model: encoder.blocks.2.norm1.weight: it has none" in dry(
        tmp_path / "hf", "--model.encoder-depth", "3", code=2
    )
    assert "is --out itself; a run goes on without" in dry(tmp_path / "run", code=2)
    assert "--init s3://bucket/run must be a file or a folder on a disk" in dry("s3://bucket/run", code=2)

    # damaged: all ranks end, and with the same line
    whole = (tmp_path / "official.pth").read_bytes()
    (tmp_path / "damaged.pth").write_bytes(whole[:-2000])
    said = start(dataset, tmp_path / "run", "--init", str(tmp_path / "damaged.pth"), ranks=2).said(2)
    one, two = (line.partition(f" rank {rank}: ")[2] for rank, line in enumerate(sorted(said.strip().splitlines())))
    assert one == two and one.startswith(f"--init: {tmp_path / 'damaged.pth'} is damaged, or cut off")
    assert not (tmp_path / "run").exists()


def test_a_teacher_may_be_a_classifier(tmp_path: Path) -> None:
    """Whose encoder has no last norm. An older run's file says no sizes; its config.json does."""
    model = VideoClassifier(MODEL, 5)
    initialise(model, seed=0)
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata_of(MODEL))
    with torch.device("meta"):
        target = FeatureTargets(MODEL, "reference", str(tmp_path / "model.safetensors"))
        teacher = target.frozen()["teacher"]
    names = [name for name, _ in teacher.model.named_parameters()]
    assert list(teacher.weights()) == names and "norm.weight" not in names and "blocks.1.mlp.fc2.bias" in names
    with pytest.raises(ValueError, match="its patch_size is 8, the student's 16; they must have the same tokens"):
        FeatureTargets(PretrainConfig().model, "reference", str(tmp_path / "model.safetensors"))
