"""Distillation: what a student learns of a teacher, which teachers can be, and that kept logits are the teacher's."""

import json
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.classifier import VideoClassifier
from model.config import Implementation, ModelConfig
from model.videomae import VideoMAE
from model.weights import metadata_of, read_weights
from pipeline.labels import Labels
from pipeline.loader import ClipLoader
from pipeline.sampling import SamplingRecipe
from pipeline.sampling.draws import Draws
from pipeline.sampling.sampler import TrainingSampler
from pipeline.storage.manifest import Manifest
from tests.train.trainers import SMALL, lines, losses, run, start
from train.augmentation import AugmentConfig
from train.command_line import from_command_line
from train.compute.memory import step_memory
from train.recipes.distilling import RECIPES
from train.soft_labels import distillation_loss
from train.stages.distilling import DistillConfig, Distilling
from train.targets.kept_logits import KEY, Asked, KeptLogits, LogitWriter, keys_of

FILE = Path(__file__).resolve().parents[2] / "train" / "distill.py"
NOISY = ("--drop-path", "0.3", "--head-dropout", "0.3", "--augment.erasing", "0.5", "--optim.base-lr", "0.1")
SIZES = ModelConfig(  # deeper, wider and of smaller patches than the student
    input_size=32, num_frames=8, patch_size=4, encoder_dim=48, encoder_depth=3, encoder_heads=3
)


def written(file: Path, labels: list[str] | None, classes: int = 8, seed: int = 5) -> Path:
    """A classifier that knows nothing, but is sure of it."""
    torch.manual_seed(seed)
    tensors = {name: torch.randn(tensor.shape) * 0.2 for name, tensor in VideoClassifier(SIZES, classes).state_dict().items()}
    save_file(tensors, file, metadata_of(SIZES, labels))
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


def test_a_teacher_counts_where_little_is_kept() -> None:
    """It is through before the student's forward pass keeps anything."""
    config = RECIPES["vit-s-k710"]()
    cost = Distilling(config).cost(config.compute)
    assert cost.frozen_gmac == pytest.approx(2543, abs=1) and cost.frozen_bytes == 2 * 1_012_611_142
    for again, counts in ((False, False), (True, True)):
        memory = [step_memory(each, [again] * 12, views=64).passing for each in (cost, replace(cost, before=0))]
        assert (memory[0] > memory[1]) == counts


@pytest.mark.slow
def test_clips_without_labels_have_the_teachers_classes(dataset: Path, teacher: Path, names: list[str], tmp_path: Path) -> None:
    options = ("--steps", "2", "--evaluate-every", "2", "--evaluate-split", "train")
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


CACHED = ("--steps", "7", "--save-every", "2", "--cache-teacher")


@pytest.fixture(scope="module")
def cached(labelled: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of more than two epochs of three steps, with everything random on, that keeps its teacher's logits."""
    out = tmp_path_factory.mktemp("cached") / "run"
    run(labelled, out, "--teacher", str(teacher), *NOISY, *CACHED, program=FILE)
    return out


def test_kept_logits_are_the_teacher(labelled: Path, cached: Path, tmp_path: Path) -> None:
    """To the last bit, without one; of other views they are refused, with what differs."""
    kept = ("--teacher-logits", str(cached), *NOISY)
    said = run(labelled, tmp_path / "run", *kept, "--steps", "7", "--evaluate-every", "7", program=FILE)
    assert losses(tmp_path / "run") == losses(cached)
    one, other = (load_file(out / "model.safetensors") for out in (cached, tmp_path / "run"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert "held_out_top1" in lines(tmp_path / "run" / "evaluations.jsonl")[0] and "this run has" not in said
    tables = [pq.read_table(file) for file in sorted((cached / "teacher").rglob("*.parquet"))]
    found = pa.concat_tables(tables)
    assert found.schema.field("logits").type == pa.list_(pa.float16(), 8) and len(found) == 7 * 8
    assert set(found["view"].to_pylist()) == {0, 1} and min(found["partner"].to_pylist()) >= 0
    assert len(tables) == 5, "at each of four checkpoints, and anew in each epoch"
    changes = ("--seed", "1", "--augment.mixup", "0.5", "--logits", "fp32", "--augment.smoothing", "0.2")
    words = start(labelled, tmp_path / "other", *kept, *changes, "--steps", "1", program=FILE).said(2)
    assert "of other views than this run's: logits fp16 -> fp32, augment.mixup 0.8 -> 0.5, seed 0 -> 1; give" in words
    assert not (tmp_path / "other").exists()


def test_what_the_teacher_has_not_seen_is_said(labelled: Path, cached: Path, tmp_path: Path) -> None:
    """A step that is not there, and a clip that stands in for another; also where logits are of other classes."""
    about = json.loads((cached / "teacher" / "teacher.json").read_text())
    kept = KeptLogits(str(cached / "teacher"))
    assert kept.reach() == (2, 0) and kept.teacher == about["teacher"] and kept.num_classes == 8
    recipe = SamplingRecipe.of(about["recipe"])
    facts = {"recipe": recipe, "dataset": "", "version": 1, "clips": "", "logits": "fp16"}  # what comes after the crop counts:
    weak, strong = (AugmentConfig(randaugment=f"rand-m{m}-n2-inc1", randaugment_by="device") for m in (7, 9))
    differences = Asked(augment=strong, **facts).differences(Asked(augment=weak, **facts).plain())
    assert differences == ["augment.randaugment rand-m7-n2-inc1 -> rand-m9-n2-inc1"]
    loader = ClipLoader(labelled, recipe, sampler=TrainingSampler(pairs=True), workers=1)
    for batch in loader.epochs(1):
        draws = Draws(recipe, batch.epoch, batch.positions.numpy())
        keys = keys_of(batch, draws.mixing(0.8, 1.0, 0.5))
        assert kept.of(batch, keys).shape == (8, 8)
    keys[1, 3] = keys[1, 2]
    clip = loader.manifest.clip(int(keys[1, 2])).key
    where = rf"at position {keys[1, 0]} of epoch 0 \(step 2\) stands {clip}, mixed with {clip}, and .* saw another"
    with pytest.raises(ValueError, match=where):
        kept.of(batch, keys)
    late = replace(batch, epoch=2, step=1)
    with pytest.raises(ValueError, match=r"no logits of position .* of epoch 2 .* they reach to step 0 of epoch 2; the same"):
        kept.of(late, keys)
    loader.close()
    assert kept.otherwise({"precision": "fp32", "device": "cuda"}) == ["device cpu, here cuda"]
    kept.told_apart(about["classes"], 8, None)
    with pytest.raises(ValueError, match=r"are of 8 classes, such as .*, which are not the 8 of the dataset"):
        kept.told_apart([*reversed(about["classes"])], 8, None)
    with pytest.raises(ValueError, match=r"has no teacher/teacher.json: no logits are kept there"):
        KeptLogits(str(tmp_path))
    for other in ({"teacher": "weights"}, {"cache_teacher": True}):
        with pytest.raises(ValueError, match="with --teacher-logits no teacher is run; leave one of the two"):
            DistillConfig(teacher_logits=str(cached), **other)


def records(out: Path) -> dict[tuple[int, ...], bytes]:
    """All that is kept, by epoch and key; of what is there twice, one, which the other is equal to."""
    found: dict[tuple[int, ...], bytes] = {}
    for file in (out / "teacher").rglob("*.parquet"):
        for record in pq.read_table(file).to_pylist():
            key, logits = (int(file.parent.name[6:]), *(record[name] for name in KEY)), np.array(record["logits"]).tobytes()
            assert found.setdefault(key, logits) == logits
    return found


def test_files_hold_whole_steps(labelled: Path, tmp_path: Path) -> None:
    """Also where one is full within a step of several passes; of a view that is there twice the younger record counts."""
    recipe = SamplingRecipe(views_per_step=12, views_per_clip=2, num_frames=2, input_size=16, masks=None)
    with closing(ClipLoader(labelled, recipe, clips_per_batch=2, workers=1)) as loader:
        batches, asked = [next(loader) for _ in range(6)], Asked.of(loader, AugmentConfig(), "fp32")
        for precision, logits in (("fp32", torch.randn(24, 5)), ("bf16", torch.randn(24, 5))):
            made = {"precision": precision}
            writer = LogitWriter(tmp_path / "teacher", asked, 5, made, rank=0, world_size=1, full=1)
            writer.check("somebody")
            for number, batch in enumerate(batches):
                writer.add(batch, keys_of(batch, None), logits[4 * number : 4 * number + 4])
            names = {file.name[6:23] for file in (tmp_path / "teacher").rglob("*.parquet")}
            writer.flush()
        assert names == {"00000000-00000000", "00000001-00000001"}
        for file in (tmp_path / "teacher").rglob("*.parquet"):
            os.utime(file, (0, 0))  # copied: the younger one is known by its name
        kept = KeptLogits(str(tmp_path))
        assert kept.otherwise({"precision": "fp32"}) == ["precision fp32 and bf16, here fp32"]
        assert kept.reach() == (0, 1) and kept.names is None
        for number, batch in enumerate(batches):
            assert (kept.of(batch, keys_of(batch, None)) == logits[4 * number : 4 * number + 4].numpy()).all()


@pytest.mark.slow
def test_killed_and_on_other_ranks_it_is_the_same_run(labelled: Path, teacher: Path, cached: Path, tmp_path: Path) -> None:
    """And its cache is whole; a run may go on from kept logits to the teacher, and the other way; another one is refused."""
    online = ("--teacher", str(teacher), *NOISY, *CACHED)
    trainer = start(labelled, tmp_path / "killed", *online, program=FILE).until(5).send(signal.SIGKILL)
    assert trainer.wait() == [-signal.SIGKILL]
    shutil.copytree(tmp_path / "killed", tmp_path / "another")
    run(labelled, tmp_path / "killed", *online, program=FILE)
    assert losses(tmp_path / "killed") == losses(cached)
    one, other = (load_file(out / "model.safetensors") for out in (cached, tmp_path / "killed"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    assert records(tmp_path / "killed") == records(cached) and len(records(cached)) == 7 * 8

    # begun on two ranks with kept logits, it goes on on one, in two passes of a pair each, with the teacher
    kept = ("--teacher-logits", str(tmp_path / "killed"), *NOISY, *CACHED[:-1])
    trainer = start(labelled, tmp_path / "fewer", *kept, ranks=2, program=FILE).until(4).send(signal.SIGTERM)
    assert trainer.wait() == [0, 0]
    run(labelled, tmp_path / "fewer", *online[:-1], "--compute.views-per-forward", "4", program=FILE)
    assert losses(tmp_path / "fewer") == pytest.approx(losses(cached), rel=1e-4)
    run(labelled, tmp_path / "two", *online, ranks=2, program=FILE)
    names = {file.stem[-22:] for file in (tmp_path / "two").rglob("*.parquet")}
    assert names == {"rank-0-of-2-start-0001", "rank-1-of-2-start-0001"}
    run(labelled, tmp_path / "reader", "--teacher-logits", str(tmp_path / "two"), *NOISY, *CACHED[:-1], program=FILE)
    assert losses(tmp_path / "reader") == pytest.approx(losses(cached), rel=1e-4)

    # the logits end before the run does
    said = start(labelled, tmp_path / "longer", *kept[:2], *NOISY, "--steps", "9", program=FILE).said(2)
    assert (
        "has the teacher's logits of 7 steps, and this run has 9" in said
        and "they reach to step 0 of epoch 2; the same" in said
    )

    names = read_weights(teacher).labels
    other_teacher = written(tmp_path / "other.safetensors", list(names or ()), classes=9, seed=6)
    said = start(labelled, tmp_path / "another", "--teacher", str(other_teacher), *NOISY, *CACHED, program=FILE).said(2)
    assert "keeps logits of another teacher, or of other views: teacher" in said


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
