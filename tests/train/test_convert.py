"""Weights from each layout to each, by the command."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from model.action_detector import ActionDetector
from model.classifier import VideoClassifier
from model.config import MODELS, ModelConfig
from model.initialization import initialise
from model.videomae import VideoMAE
from model.weights import metadata_of, read_weights
from train import convert
from train.checkpoint.files import checksum
from train.checkpoint.source import read_source
from train.checkpoint.weights import read_weights as read_checkpoint
from train.checkpoint.weights import save_weights

TINY = replace(MODELS["tiny"], input_size=16, num_frames=4)
NAMES = {"tubecell": "x.safetensors", "official": "x.pth", "hf": "x", "timm": "y.safetensors"}
SIZES = ["--heads", "4", "--decoder-heads", "2", "--input-size", "16", "--num-frames", "4"]


def written(folder: Path, model: nn.Module, config: ModelConfig = TINY, labels: list[str] | None = None) -> Path:
    initialise(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    save_weights(folder / "in.safetensors", model.state_dict(), metadata_of(config, labels, step=3))
    return folder / "in.safetensors"


TOURS = {  # every layout to every other one
    "autoencoder": "tubecell official hf tubecell hf official tubecell",
    "classifier": "tubecell official hf timm tubecell hf official timm hf tubecell timm official tubecell",
    "encoder": "tubecell official hf timm tubecell hf official timm hf tubecell timm official tubecell",
}


@pytest.mark.parametrize("kind", ["autoencoder", "classifier", pytest.param("encoder", marks=pytest.mark.slow)])
def test_round_trips(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """Nothing is lost on the way, tensor by tensor, and the network computes the same."""
    model = VideoClassifier(TINY, 5) if kind == "classifier" else VideoMAE(TINY)
    given = written(tmp_path, model, labels=list("abcde") if kind == "classifier" else None)
    if kind == "encoder":
        of_encoder = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("encoder.")}
        save_weights(given, of_encoder, metadata_of(TINY))
    before = read_weights(given)
    for number, layout in enumerate(TOURS[kind].split()):
        out = tmp_path / f"{number}{NAMES[layout]}"
        # transformers takes ten seconds to be imported
        others = ["--verify"] if layout != "hf" and not given.is_dir() else []
        assert convert.main([str(given), str(out), "--to", layout, *others, *SIZES]) == 0, f"{given} to {layout}"
        after = read_source(out, encoder_heads=4, decoder_heads=2, input_size=16, num_frames=4)
        left, right = (before.encoder(), after.encoder()) if kind == "encoder" else (before.tensors, after.tensors)
        assert left.keys() == right.keys() and all(torch.equal(tensor, right[name]) for name, tensor in left.items())
        if kind == "classifier" and number == 0:
            assert after.labels == list("abcde")
        given = out


def test_timm_has_no_decoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = written(tmp_path, VideoMAE(TINY))
    assert convert.main([str(given), str(tmp_path / "x.safetensors"), "--to", "timm", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "cannot be held: decoder.blocks.0" in said and "timm's ViT has no decoder" in said and "tokens of 2 random" in said
    one, other = (read_weights(file).encoder() for file in (given, tmp_path / "x.safetensors"))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-s", "vit-g"])
def test_transformers_takes_what_is_written(tmp_path: Path, name: str) -> None:
    """Strictly, with ViT-g's widths, and computes the same to 1e-5 but for its last norm's own epsilon (2e-5); so does timm."""
    config = replace(MODELS[name], encoder_depth=2, decoder_depth=1, num_frames=4, input_size=112, last_norm_eps=1e-5)
    for kind, model in (("autoencoder", VideoMAE(config)), ("classifier", VideoClassifier(config, 5))):
        given = written(tmp_path, model, config)
        out = tmp_path / kind
        said = subprocess.run(
            [sys.executable, convert.__file__, given, out, "--to", "hf", "--verify"], text=True, capture_output=True, check=True
        ).stdout
        found = re.findall(r"largest difference (\S+), of values up to (\S+)", said)
        assert found and all(float(difference) < 1e-5 * float(largest) for difference, largest in found), said
        assert convert.main([str(out), str(tmp_path / f"{kind}.pth"), "--to", "official", "--verify"]) == 0
        timm = tmp_path / f"{kind}.timm.safetensors"
        assert convert.main([str(given), str(timm), "--to", "timm", "--verify"]) == 0


def test_tensors_that_share_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Written apart; and where a folder has the name of a file, nothing stays."""
    tensors = read_weights(written(tmp_path, VideoClassifier(TINY, 5))).tensors
    shared = dict(tensors) | {"fc_norm.weight": tensors["fc_norm.bias"], "head.bias": torch.zeros(1).expand(5)}
    torch.save(shared, given := tmp_path / "in.pth")
    assert convert.main([str(given), str(tmp_path / "x.safetensors"), "--to", "tubecell", *SIZES]) == 0
    found = read_weights(tmp_path / "x.safetensors").tensors
    assert all(torch.equal(tensor, found[name]) for name, tensor in shared.items())
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IsADirectoryError):
        save_weights(tmp_path / "folder", shared)
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_of_a_run_that_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The running mean by --key, hints as of any file, and a checkpoint that is removed while it is read."""
    state = written(tmp_path, VideoClassifier(TINY, 5)) and read_weights(tmp_path / "in.safetensors").tensors
    mean = {name: tensor + 1 for name, tensor in state.items()}
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"model": dict(state), "ema": mean}, checkpoint_id=checkpoint, no_dist=True)
    (checkpoint / "progress.json").write_text("{}")
    values = {"stage": "pretrain", "optim": {}, "model": asdict(TINY)}
    for folder in (checkpoint, tmp_path / "run"):
        (folder / "config.json").write_text(json.dumps(values))
    sums = {file.name: checksum(file) for file in checkpoint.iterdir()}
    (checkpoint / "checksums.json").write_text(json.dumps(sums))
    for key, want in ((None, state), ("model", state), ("model_ema", mean)):
        found = read_source(tmp_path / "run", key=key, encoder_heads=2)
        assert all(torch.equal(tensor, want[name]) for name, tensor in found.tensors.items())
        assert found.config.encoder_heads == 2
    with pytest.raises(ValueError, match="has model and perhaps best, best_ema, model_ema, but no 'module'"):
        read_source(tmp_path / "run", key="module")
    next(checkpoint.glob("*.distcp")).unlink()
    with pytest.raises(OSError, match=r"step-00000002 cannot be read: .*No such file"):
        read_checkpoint(checkpoint)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = str(written(tmp_path, VideoMAE(TINY, target_values=8)))
    (tmp_path / "there").mkdir()
    (tmp_path / "page.pth").write_text("<html>")
    refused = {
        "is there already": [given, str(tmp_path / "there"), "--to", "hf"],
        "must end in .pth": [given, str(tmp_path / "x.zip"), "--to", "official"],
        "is no folder": [given, str(tmp_path / "nowhere" / "x.pth"), "--to", "official"],
        "predicts no pixels": [given, str(tmp_path / "x"), "--to", "hf"],
        "is a web page": [str(tmp_path / "page.pth"), str(tmp_path / "x"), "--to", "hf"],
        "does not exist": [str(tmp_path / "gone"), str(tmp_path / "x"), "--to", "hf"],
    }
    before = sorted(tmp_path.iterdir())
    for words, arguments in refused.items():
        assert convert.main(arguments) == 2
        assert words in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "official"])
def test_a_killed_conversion_leaves_nothing(tmp_path: Path, to: str) -> None:
    """Killed while it writes: the file has no name yet, and what is written of it goes with the process."""
    large = replace(TINY, encoder_dim=512)  # 50 MB
    given = written(tmp_path, VideoClassifier(large, 5), large)
    out = tmp_path / NAMES[to]
    process = subprocess.Popen([sys.executable, convert.__file__, given, out, "--to", to], stdout=subprocess.DEVNULL)
    descriptors = Path(f"/proc/{process.pid}/fd")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(half_written(descriptor, tmp_path) for descriptor in descriptors.iterdir()):
            break
        assert process.poll() is None, "it ended before it was seen to write"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [given]


def half_written(descriptor: Path, folder: Path) -> bool:
    try:
        return os.readlink(descriptor).startswith(f"{folder}/#") and descriptor.stat().st_size > 0
    except OSError:
        return False


def test_a_detector_stays_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No name tells it from a probe's classifier: a file of ours says it, others are known by AVA's 80 classes."""
    given = written(tmp_path, ActionDetector(TINY, 80))
    torch.save({"model": dict(read_weights(given).tensors)}, tmp_path / "in.pth")
    assert (
        convert.main([str(tmp_path / "in.pth"), str(tmp_path / "x.safetensors"), "--to", "tubecell", "--verify", *SIZES]) == 0
    )
    assert read_weights(tmp_path / "x.safetensors").metadata["stage"] == "detect"
    assert convert.main([str(tmp_path / "x.safetensors"), str(tmp_path / "x.pth"), "--to", "official", "--verify"]) == 0
    assert read_weights(tmp_path / "x.pth").kind == "detector" and "logits of 2 random clips" in capsys.readouterr().out
    assert convert.main([str(tmp_path / "x.safetensors"), str(tmp_path / "x"), "--to", "hf"]) == 2
    assert "is an action detector, of which --to hf knows nothing" in capsys.readouterr().err
