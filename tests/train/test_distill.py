"""Distillation: what a student learns of a teacher, which teachers can be, and that kept logits are the teacher's."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.classifier import VideoClassifier
from model.config import Implementation, ModelConfig
from model.videomae import VideoMAE
from model.weights import metadata_of, read_weights
from pipeline.labels import Labels
from pipeline.storage.manifest import Manifest
from tests.train.trainers import SMALL, lines, run, start
from train.command_line import from_command_line
from train.recipes.distilling import RECIPES
from train.soft_labels import distillation_loss
from train.stages.distilling import Distilling

FILE = Path(__file__).resolve().parents[2] / "train" / "distill.py"
NOISY = ("--drop-path", "0.3", "--head-dropout", "0.3", "--augment.erasing", "0.5", "--optim.base-lr", "0.1")
SIZES = ModelConfig(  # deeper, wider and of smaller patches than the student
    input_size=32, num_frames=8, patch_size=4, encoder_dim=48, encoder_depth=3, encoder_heads=3
)


def written(file: Path, labels: list[str] | None, sizes: ModelConfig = SIZES, classes: int = 8) -> Path:
    """A classifier that knows nothing, but is sure of it."""
    torch.manual_seed(5)
    tensors = {name: torch.randn(tensor.shape) * 0.2 for name, tensor in VideoClassifier(sizes, classes).state_dict().items()}
    save_file(tensors, file, metadata_of(sizes, labels))
    return file


@pytest.fixture(scope="module")
def names(labelled: Path) -> list[str]:
    return Labels(Manifest(labelled), "train").names


@pytest.fixture(scope="module")
def teacher(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It knows the dataset's classes, in another order, and one more."""
    return written(tmp_path_factory.mktemp("teacher") / "teacher.safetensors", ["another", *reversed(names)], classes=9)


@pytest.mark.slow
def test_a_student_learns_what_its_teacher_says(labelled: Path, teacher: Path, names: list[str], tmp_path: Path) -> None:
    """Views without noise, of which it is asked: the loss falls, they agree. Its labels are the dataset's."""
    plain = [word for name in ("mixup", "cutmix", "erasing", "flip") for word in (f"--augment.{name}", "0")]
    options = ("--teacher", str(teacher), "--steps", "40", "--evaluate-every", "40", "--head-scale", "1", "--drop-path", "0")
    said = run(labelled, tmp_path / "run", *options, *plain, "--optim.base-lr", "0.05", program=FILE)
    found = lines(tmp_path / "run" / "metrics.jsonl")
    assert found[-1]["loss"] < 0.5 * found[0]["loss"] and {"agreement", "top1"} <= found[0].keys()
    (evaluated,) = lines(tmp_path / "run" / "evaluations.jsonl")
    assert round(7 * evaluated["held_out_top1"], 4) in range(8) and "held_out_agreement" not in evaluated
    assert read_weights(tmp_path / "run" / "model.safetensors").labels == names and "done: 40 steps" in said


def stage_of(data: Path, teacher: Path, *options: str) -> Distilling:
    return Distilling(from_command_line(RECIPES, [*SMALL, "--data", str(data), "--teacher", str(teacher), *options]))


def weights_of(stage: Distilling) -> Mapping[str, torch.Tensor]:
    """Those that the teacher is run with."""
    with torch.device("meta"):
        stage.model(Implementation())
        frozen = stage.frozen()["teacher"]
    return frozen.weights()


def test_a_teacher_is_asked_of_the_students_classes(labelled: Path, teacher: Path, names: list[str]) -> None:
    """By name; or the student has the teacher's."""
    theirs, stage = load_file(teacher), stage_of(labelled, teacher)
    cost = stage.cost(stage.config.compute)
    assert cost.notes["teacher"].startswith("3 blocks of 48, patch 4, 9 classes; ") and cost.frozen_gmac > cost.gmac
    asked = weights_of(stage)
    assert torch.equal(asked["head.weight"], theirs["head.weight"][1:].flip(0)) and len(asked["head.bias"]) == 8
    assert torch.equal(asked["blocks.2.mlp.fc2.bias"], theirs["blocks.2.mlp.fc2.bias"])
    stage = stage_of(labelled, teacher, "--classes", "teacher")
    asked = weights_of(stage)
    assert torch.equal(asked["head.weight"], theirs["head.weight"])
    assert stage.model(Implementation()).head.out_features == 9


def test_clips_without_labels_have_the_teachers_classes(dataset: Path, teacher: Path, names: list[str], tmp_path: Path) -> None:
    options = ("--steps", "2", "--evaluate-every", "1", "--evaluate-split", "train")
    run(dataset, tmp_path / "run", "--teacher", str(teacher), *options, program=FILE)
    assert {"agreement"} == {name for name in lines(tmp_path / "run" / "metrics.jsonl")[0] if name in ("agreement", "top1")}
    evaluated = lines(tmp_path / "run" / "evaluations.jsonl")[-1]
    assert evaluated["clips"] == 12 and round(12 * evaluated["held_out_agreement"], 4) in range(13)
    assert "held_out_top1" not in evaluated and (tmp_path / "run" / "best.safetensors").exists()
    assert read_weights(tmp_path / "run" / "model.safetensors").labels == ["another", *reversed(names)]


def test_teachers_that_cannot_be(labelled: Path, teacher: Path, names: list[str], tmp_path: Path) -> None:
    def refused(words: str, *options: str, data: Path = labelled, given: Path | None = None) -> None:
        with pytest.raises(ValueError, match=words):
            weights_of(stage_of(data, given or teacher, *options))

    refused("takes views of 8 frames of 32 x 32 pixels, and the student's are 4 of 32 x 32", "--model.num-frames", "4")
    other = written(tmp_path / "other.safetensors", ["another", *names[1:]])
    refused(f"must know the dataset's classes: 1 of the 8 .* none of its 8, such as {names[0]!r}; .*--classes", given=other)
    refused("it has 9 classes without names, the dataset 8", given=written(tmp_path / "untold.safetensors", None, classes=9))
    save_file(VideoMAE(SIZES).state_dict(), other, metadata_of(SIZES))
    refused("is encoder and decoder; a classifier is needed: weights with a head", given=other)
    refused("--teacher: .*gone.safetensors", given=tmp_path / "gone.safetensors")
    assert "--teacher WEIGHTS is needed" in start(labelled, tmp_path / "run", "--steps", "1", program=FILE).said(2)
    changes: dict[str, dict[str, Any]] = {"0.0 must be over 0": {"temperature": 0.0}, "must be a file": {"teacher": "s3://x/y"}}
    for words, change in changes.items():
        with pytest.raises(ValueError, match=words):
            replace(stage_of(labelled, teacher).config, **change)


def test_the_loss_is_that_of_the_temperature() -> None:
    """Against torch's, and by its gradient: squared, it is of one size at any temperature."""
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    assert distillation_loss(teacher, teacher, 3.0, False) == pytest.approx(0, abs=1e-6)
    sizes = []
    for temperature in (100.0, 1000.0):
        distillation_loss(student, teacher, temperature, True).backward()
        assert student.grad is not None
        sizes.append(float(student.grad.norm()))
        student.grad = None
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
