"""Fine-tuning: what is learned of labelled clips, from which weights, and that no restart or number of ranks changes it."""

import json
import signal
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.classifier import VideoClassifier
from model.config import Implementation
from model.pixels import normalise
from model.weights import metadata_of, read_weights
from pipeline.labels import Labels
from pipeline.loader import ClipLoader
from pipeline.sampling import PlainViews, SamplingRecipe
from pipeline.sampling.draws import Draws
from pipeline.sampling.randaugment import RandAugment
from pipeline.sampling.sampler import TrainingSampler
from pipeline.settings import completed, flatten, kept, with_values
from pipeline.storage.manifest import Manifest
from tests.train.trainers import SMALL, lines, losses, run, start
from train.augmentation import AugmentConfig, augmented, mixed_labels
from train.checkpoint.best import FILES, Best, reached
from train.checkpoint.source import read_source
from train.classes import check_classes, head_of, labelled_rows
from train.command_line import from_command_line
from train.compute.parallel import started
from train.compute.randaugment import randaugmented
from train.config import ComputeConfig
from train.recipes.finetuning import RECIPES
from train.soft_labels import soft_labels
from train.stages.finetuning import FinetuneConfig, Finetuning

FILE = Path(__file__).resolve().parents[2] / "train" / "finetune.py"
NOISY = (
    *("--drop-path", "0.3", "--head-dropout", "0.3", "--augment.erasing", "0.5", "--optim.base-lr", "0.1"),
    *("--augment.randaugment", "rand-m7-n4-mstd0.5-inc1", "--augment.randaugment-by", "device"),
)


@pytest.fixture(scope="module")
def encoder(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "run"
    run(labelled, out, "--steps", "2")
    return out


def test_the_best_weights_are_kept_by_name(labelled: Path, tmp_path: Path) -> None:
    """And their mean; each is the one of the step whose figure is the highest, the earliest of these."""
    out, options = tmp_path / "run", ("--steps", "4", "--evaluate-every", "2", "--ema", "0.5", "--optim.base-lr", "0.1")
    said = run(labelled, out, *options, program=FILE)
    evaluated = lines(out / "evaluations.jsonl")
    for prefix, key in (("", "best"), ("ema_", "best_ema")):
        values = [line[f"{prefix}held_out_top1"] for line in evaluated]
        best = read_source(out, key=key)
        assert int(best.metadata["step"]) == 2 + 2 * values.index(max(values))
        assert float(best.metadata["value"]) == max(values)
        words = f"held out top1: {values[-1]:.4g} after step 4, the best {max(values):.4g} after step {best.metadata['step']}"
        assert words in said and words in (out / "card.md").read_text()
    assert best.labels == Labels(Manifest(labelled), "train").names
    with pytest.raises(ValueError, match="has no best weights of this name: no evaluation of classes"):
        (out / "best.safetensors").unlink()
        read_source(out, key="best")


def test_best_weights_of_steps_that_are_to_come_again_do_not_count(tmp_path: Path) -> None:
    with started("cpu") as ranks:
        training: Any = SimpleNamespace(model=torch.nn.Linear(1, 1), ranks=ranks)
        for name in ("config.json", "descent.json"):
            (tmp_path / name).write_text("{}" if name == "config.json" else "[]")

        def kept(first_step: int, *values: float) -> tuple[str, int, float] | None:
            best = Best(tmp_path, training, first_step)
            for number, value in enumerate(values, first_step + 1):
                best.keep(number, "top1", {"top1": value}, "")
            return reached(tmp_path / FILES[""])

        assert kept(0, float("nan")) is None
        assert kept(0, 0.3, 0.7, 0.7, 0.5) == ("top1", 2, 0.7)
        assert kept(4, 0.6) == ("top1", 2, 0.7) and kept(4, 0.8) == ("top1", 5, 0.8)
        assert kept(1, 0.4) == ("top1", 2, 0.4), "that of step 5 was of steps that are not done any more"


@pytest.mark.slow
def test_killed_and_on_other_ranks_it_is_the_same_run(labelled: Path, encoder: Path, tmp_path: Path) -> None:
    """With everything random on; with two ranks, and two forward passes: the same clips, noise and partners."""
    options = ("--init", str(encoder), *NOISY, "--steps", "8", "--evaluate-every", "4", "--save-every", "2")
    said = run(labelled, tmp_path / "one", *options, program=FILE)
    assert "begins with" in said and "initial values: fc_norm.weight, fc_norm.bias, head.weight, head.bias" in said
    one = losses(tmp_path / "one")
    evaluated = lines(tmp_path / "one" / "evaluations.jsonl")
    assert [(line["step"], line["clips"], line["of"]) for line in evaluated] == [(4, 7, 7), (8, 7, 7)]
    for name in ("top1", "top5"):
        assert round(7 * evaluated[-1][f"held_out_{name}"], 4) in range(8)

    trainer = start(labelled, tmp_path / "killed", *options, program=FILE).until(5).send(signal.SIGKILL)
    assert trainer.wait() == [-signal.SIGKILL]
    run(labelled, tmp_path / "killed", *options, program=FILE)
    assert losses(tmp_path / "killed") == one
    for file in ("model.safetensors", "best.safetensors"):
        weights = [load_file(tmp_path / name / file) for name in ("one", "killed")]
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert read_weights(tmp_path / "one" / "model.safetensors").labels == Labels(Manifest(labelled), "train").names

    # begun on two ranks, it goes on on one, in two passes of a pair each
    trainer = start(labelled, tmp_path / "fewer", *options, ranks=2, program=FILE).until(5).send(signal.SIGTERM)
    assert trainer.wait() == [0, 0]
    run(labelled, tmp_path / "fewer", *options, "--compute.views-per-forward", "4", program=FILE)
    assert losses(tmp_path / "fewer") == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_it_learns_what_clips_show(labelled: Path, tmp_path: Path) -> None:
    """The clips of the training itself, seen without noise: nearly all are told right."""
    options = ("--steps", "150", "--evaluate-every", "150", "--evaluate-split", "train", "--head-scale", "1")
    plain = ("--augment.mixup", "0", "--augment.cutmix", "0", "--augment.erasing", "0", "--optim.base-lr", "0.1")
    run(labelled, tmp_path / "run", *options, *plain, program=FILE)
    (found,) = lines(tmp_path / "run" / "evaluations.jsonl")
    assert found["held_out_top1"] > 0.8 and found["held_out_top5"] > 0.9
    assert lines(tmp_path / "run" / "metrics.jsonl")[-1]["top1"] > 0.6


def test_ranks_and_passes_that_would_part_pairs_are_refused(labelled: Path, tmp_path: Path) -> None:
    def config(**values: Any) -> FinetuneConfig:
        views = values.pop("views", PlainViews(views_per_step=24, views_per_clip=2))
        return FinetuneConfig(views=views, compute=ComputeConfig(views_per_forward=values.pop("most", 128)), **values)

    assert [config(most=most).accumulation(2) for most in (128, 12, 8, 4)] == [1, 1, 3, 3]
    assert config(most=8, augment=AugmentConfig(mixup=0, cutmix=0)).accumulation(2) == 2
    with pytest.raises(ValueError, match=r"4 ranks cannot share the 6 pairs of a step equally; possible .* 1, 2, 3, 6"):
        config().accumulation(4)
    with pytest.raises(ValueError, match="views-per-forward 3 must be at least 4, the views of two clips"):
        config(most=3).accumulation(2)
    with pytest.raises(ValueError, match="the 3 clips of a step must be an even number"):
        config(views=PlainViews(views_per_step=6, views_per_clip=2))
    trainer = start(labelled, tmp_path / "run", "--views.views-per-step", "12", "--steps", "1", ranks=2, program=FILE)
    assert "2 ranks cannot share the 3 pairs" in trainer.said(2)


def test_a_batch_is_of_whole_pairs(labelled: Path) -> None:
    recipe = SamplingRecipe(views_per_step=24, views_per_clip=2, num_frames=2, input_size=16, masks=None)
    loader = ClipLoader(labelled, recipe, sampler=TrainingSampler(pairs=True), clips_per_batch=4, workers=1)
    found = [(batch.positions.tolist(), batch.keys) for batch, _ in zip(loader, range(3), strict=False)]
    assert [positions for positions, _ in found] == [[0, 6, 1, 7], [2, 8, 3, 9], [4, 10, 5, 11]]
    assert [loader.keys(0, 0, part) for part in range(3)] == [keys for _, keys in found]
    loader.close()


def test_views_are_mirrored_erased_and_mixed_as_drawn() -> None:
    recipe = SamplingRecipe(views_per_step=32, views_per_clip=2, num_frames=2, input_size=16, masks=None, seed=3)
    draws, views = Draws(recipe, 1, np.arange(16)), torch.randint(256, (32, 2, 16, 16, 3), dtype=torch.uint8)
    before, may_flip = views.clone(), np.arange(32) % 4 > 0
    nothing = AugmentConfig(flip=0, erasing=0, mixup=0, cutmix=0)
    seen, mixing = augmented(views, draws, replace(nothing, flip=0.5), may_flip)
    which = torch.from_numpy(draws.flips(0.5) & may_flip)
    assert mixing is None and 0 < which.sum() < 24 and torch.equal(views, before)
    assert torch.equal(seen[which], views.flip(3)[which]) and torch.equal(seen[~which], views[~which])

    whole, _ = augmented(views, draws, replace(nothing, erasing=1e-9), may_flip)
    assert torch.equal(whole, normalise(views))
    assert torch.equal(whole, augmented(views.short() * 128, draws, nothing, may_flip)[0])  # 16 bits are normalised always
    between, _ = augmented(views.short() * 128 + 32, draws, nothing, may_flip)
    torch.testing.assert_close(between, normalise(views.float() + 0.25))
    erased, _ = augmented(views, draws, replace(nothing, erasing=0.5), may_flip)
    for view, box in enumerate(draws.erasing(0.5).tolist()):
        x, y, width, high = box
        other = (erased[view] != whole[view]).all(3)
        assert other.sum() == 2 * width * high and other[:, y : y + high, x : x + width].all()

    operations = replace(nothing, randaugment_by="device")
    changed, _ = augmented(views, draws, operations, may_flip)
    assert torch.equal(changed, randaugmented(views, draws.randaugment(RandAugment(7, 4, 0.5)))) and torch.equal(views, before)
    for first, last in ((0, 4), (4, 16)):  # in two passes
        part, of_part = slice(2 * first, 2 * last), Draws(recipe, 1, np.arange(first, last))
        assert torch.equal(augmented(views[part], of_part, operations, may_flip[part])[0], changed[part])

    seen, mixing = augmented(views, draws, replace(nothing, mixup=0.8, cutmix=1.0), may_flip)
    assert mixing is not None
    for view, (x, y, width, high) in enumerate(mixing.boxes.tolist()):
        own, theirs = whole[view], whole[mixing.partners[view]]
        want = own.clone()
        box = slice(None), slice(y, y + high), slice(x, x + width)
        want[box] = own[box] * mixing.inside[view] + theirs[box] * (1 - mixing.inside[view])
        torch.testing.assert_close(seen[view], want)
    labels = torch.arange(32) // 2 % 5
    soft = mixed_labels(soft_labels(labels, 5, 0.1), mixing)
    partner = labels[mixing.partners]
    for view in range(32):
        share = mixing.share[view]
        want = torch.full((5,), 0.02)
        want[labels[view]] += 0.9 * share
        want[partner[view]] += 0.9 * (1 - share)
        torch.testing.assert_close(soft[view], want)
    assert not soft_labels(torch.tensor([-1]), 5, 0.1).any()


def test_clips_of_something_something_are_never_mirrored(labelled: Path) -> None:
    """By their source; the toy's is called `own`."""
    stage = Finetuning(FinetuneConfig(data=str(labelled)))
    recipe = SamplingRecipe(views_per_step=8, views_per_clip=2, num_frames=2, input_size=16, masks=None)
    loader = ClipLoader(labelled, recipe, workers=1)
    batch = next(loader)
    assert stage._may_flip(batch).tolist() == [True] * 4
    stage.config = FinetuneConfig(augment=AugmentConfig(never_flipped=("ssv2", "own")))
    assert stage._may_flip(batch).tolist() == [False] * 4
    loader.close()


class Said:
    """Labels of five clips, as `Labels` gives them."""

    def __init__(self, *labels: int, kind: str = "single") -> None:
        self.found, self.kind, self.names = np.array(labels), kind, ["a", "b", "c"]

    def of(self, rows: np.ndarray) -> np.ndarray:
        return self.found[rows]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (Said(kind="none"), "has no classes: build it with labels"),
        (Said(kind="multi"), "clips with a list of labels"),
        (Said(*[-1] * 19), "are without a label"),
        (Said(*[2] * 12, *[0] * 7), "are all of class 'c': at least two"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(labels: Any, words: str, labelled: Path) -> None:
    with pytest.raises(ValueError, match=words):
        check_classes(labels, Manifest(labelled), "train")


def test_labels_that_are_missing_are_counted(labelled: Path, dataset: Path, tmp_path: Path) -> None:
    manifest = Manifest(labelled)
    labels: Any = Said(-1, *[0, 1] * 5, 1, 0, 1, 2, 2, -1, -1, 0)
    seen, notices = check_classes(labels, manifest, "train")
    assert seen.tolist() == [0, 1] and "1 of 12 clips of split 'train'" in notices[0] and "have no label" in notices[0]
    rows, notices = labelled_rows(labels, manifest, "val", seen)
    assert rows.tolist() == [12, 13, 14, 15, 18]
    assert "2 of 7 clips" in notices[0] and "2 of 7 clips" in notices[1] and "such as 'c'" in notices[1]
    with pytest.raises(ValueError, match=r"no clip of split 'val' .* has a label"):
        labelled_rows(Said(*[0] * 12, *[-1] * 7), manifest, "val", seen)  # type: ignore[arg-type]
    said = start(dataset, tmp_path / "run", "--steps", "1", program=FILE).said(2)
    assert "has no classes: build it with labels" in said and not (tmp_path / "run").exists()


def test_an_earlier_head_goes_by_the_names_of_its_classes(labelled: Path, tmp_path: Path) -> None:
    """All of them there: their rows; else it begins anew; without names as it is, or by the official files of K710."""
    stage = Finetuning(from_command_line(RECIPES, [*SMALL, "--data", str(labelled)]))
    names = stage.names
    assert names and stage.num_classes == len(names) == 8
    more = [*reversed(names), "another"]

    def started(labels: list[str] | None, classes: int) -> tuple[Any, dict[str, torch.Tensor]]:
        model = VideoClassifier(stage.config.model, classes)
        tensors = {name: torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
        save_file(tensors, tmp_path / "weights.safetensors", metadata_of(stage.config.model, labels))
        stage.config = replace(stage.config, init=str(tmp_path / "weights.safetensors"))
        return stage.start_from(stage.model(Implementation())), tensors

    found, tensors = started(more, 9)
    assert torch.equal(found.taken["head.weight"], tensors["head.weight"][:8].flip(0))
    assert found.notes == ["head: 8 of its 9 classes, by name"] and not found.fresh
    found, _ = started(["another", *names[1:]], 8)
    assert found.notes == [f"head: begins anew: 1 of the 8 classes are none of its 8, such as {names[0]!r}"]
    assert {*found.fresh} == {"head.weight", "head.bias"} and "fc_norm.weight" in found.taken
    found, tensors = started(None, 8)
    assert torch.equal(found.taken["head.bias"], tensors["head.bias"]) and "have no names" in found.notes[0]
    found, _ = started(None, 9)
    assert {*found.fresh} == {"head.weight", "head.bias"} and "9 classes without names, the dataset 8" in found.notes[0]

    weights = read_weights(tmp_path / "weights.safetensors")
    wide = replace(weights, tensors={**weights.tensors, "head.weight": torch.randn(710, 32), "head.bias": torch.randn(710)})
    copy = Manifest(labelled)
    copy.root = tmp_path
    assert "with label_map_k710.json in the dataset" in head_of(wide, names, 8, copy).said
    (tmp_path / "label_710to8.json").write_text(json.dumps([*range(700, 708)]))
    head = head_of(wide, names, 8, copy)
    assert head.rows == [*range(700, 708)] and "label_710to8.json" in head.said
    (tmp_path / "label_map_k710.json").write_text(json.dumps([*(f"no {n}" for n in range(702)), *reversed(names)]))
    head = head_of(wide, names, 8, copy)
    assert head.rows == [*reversed(range(702, 710))] and "by the names in label_map_k710.json" in head.said
    (tmp_path / "label_map_k710.json").unlink()
    (tmp_path / "label_710to8.json").write_text("[710]")
    with pytest.raises(ValueError, match="must be a list of 8 whole numbers below 710"):
        head_of(wide, names, 8, copy)


def test_views_of_another_size_have_the_recipes_positions_interpolated() -> None:
    """The sizes that it had before the flags."""
    grids = {
        (): ((8, 14, 14), (8, 14, 14)),
        ("--model.input-size", "320", "--model.num-frames", "32"): ((16, 20, 20), (8, 14, 14)),
        ("--model.input-size", "320", "--positions", "official"): ((8, 20, 20), (8, 20, 20)),
        ("--model.input-size", "320", "--model.positions-size", "256"): ((8, 20, 20), (8, 16, 16)),
    }
    for options, grid in grids.items():
        config = from_command_line(RECIPES, ["vit-b-own", *options]).model
        assert (config.grid, config.positions_grid) == grid, options


def test_what_was_begun_before_randaugment_goes_on_without_it() -> None:
    """And with antialiased crops; unless a command names them, which makes it another run."""
    config = RECIPES["vit-s-own"]()
    older = flatten(asdict(config))
    for name in ("augment.randaugment", "augment.randaugment_by", "crop_resize"):
        del older[name]
    before = completed(older, config)
    sampling = with_values(config, kept(before, config)).sampling
    assert (sampling.randaugment, sampling.crop_resize) == ("", "antialiased")
    assert kept(before, config, {"augment.randaugment"}) == {"crop_resize": "antialiased"}
    assert (config.sampling.randaugment, config.sampling.crop_resize) == ("rand-m7-n4-mstd0.5-inc1", "official")
    on_device = from_command_line(RECIPES, ["vit-s-own", "--augment.randaugment-by", "device"])
    assert on_device.sampling == replace(config.sampling, randaugment="")
    without = from_command_line(RECIPES, ["vit-s-own", "--augment.randaugment", ""])
    assert without.sampling.randaugment == "" and without.augment.operations_of_views is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model.input-size", "266"), "--model.patch-size 8; set --model.input-size to 264 or 272, or"),
        (("--drop-path", "1"), "--drop-path 1.0 must be at least 0 and less than 1"),
        (("--layer-decay", "0"), "--layer-decay 0.0 must be over 0 and at most 1"),
        (("--head-scale", "0"), "--head-scale 0.0 must be over 0"),
        (("--augment.flip", "2"), "--augment.flip 2.0 must be 0 to 1"),
        (
            ("--augment.randaugment", "rand-m9"),
            "--augment.randaugment: RandAugment 'rand-m9' is not known; allowed is what timm",
        ),
        (("--augment.mixup", "-1"), "--augment.mixup -1.0 must be 0 (without it) to 100"),
        (("--augment.smoothing", "1"), "--augment.smoothing 1.0 must be at least 0 and less than 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        from_command_line(RECIPES, ["tiny", *options])
    assert words in capsys.readouterr().err
