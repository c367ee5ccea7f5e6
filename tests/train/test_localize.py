"""Localizing: what is learned of features, that no restart or number of ranks changes it, and what is refused."""

import json
import math
import signal
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.localizer import shapes_of
from model.localizer_weights import as_actionformer
from pipeline.settings import fields_of, value_of
from tests.train.localization.made_features import write_features
from tests.train.trainers import lines, losses, run, start
from train import localize
from train.checkpoint.source import read_source
from train.command_line import Kind, field_texts, from_command_line, spoken
from train.config import configuration_of
from train.localization.feature_set import FeatureSet
from train.localization.inference import Found
from train.localization.judging import JudgeConfig, judge
from train.localization.mean_precision import THUMOS, Predicted, mean_precision
from train.localize import main
from train.recipes.localizing import RECIPES
from train.stages.localizing import Localizing
from tubecell.__main__ import programs

FILE = Path(__file__).resolve().parents[2] / "train" / "localize.py"
SMALL = ("tiny", "--log-every", "1", "--no-save-in-background", "--model.dim", "16", "--model.head-dim", "16")
Made = tuple[Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_features(tmp_path_factory.mktemp("made"), {"train": 10, "val": 3})


def words(made: Made, *more: str) -> list[str]:
    return [*SMALL, "--features", str(made[0]), "--annotations", str(made[1]), *more]


def test_a_run_and_what_it_leaves(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Figures, predictions, pictures, weights by name, a card; and the command that judges it again finds the same."""
    out = tmp_path / "run"
    few = "--evaluate-every", "2", "--steps", "3", "--judge.pictures", "1"
    said = run(None, out, *few, given=words(made), program=FILE)
    assert "10 clips of split train (left out: 3 val)" in said and "of 3 of 3 clips" in said
    evaluated = lines(out / "evaluations.jsonl")
    assert [line["step"] for line in evaluated] == [2, 3] and 0 <= evaluated[-1]["ema_held_out_map"] <= 1
    assert {line["step"] for line in lines(out / "metrics.jsonl") if line["classes"] > 0 and line["distances"] > 0} == {1, 2, 3}
    assert json.loads((out / "label_map.json").read_text()) == ["clap", "jump", "throw", "wave"]
    there = {each.name for each in (out / "localization").iterdir()}
    assert there == {"predictions.json", "evaluation.json", "evaluation.html", "timelines"}
    assert (out / "best.safetensors").exists() and "64 steps of features of 16 values" in (out / "card.md").read_text()
    config = configuration_of(out, RECIPES["tiny"]())
    assert config.model.dim == 16 and config.sequence.crop == (0.9, 1.0) and config.model.windows == (9,)
    again = tmp_path / "result"
    assert main(["evaluate", str(out), "--split", "val", "--out", str(again), "--pictures", "1"]) == 0
    told = capsys.readouterr().out
    with pytest.raises(ValueError, match="is a localizer's, no video ViT's"):
        read_source(out)
    figures = json.loads((again / "evaluation.json").read_text())
    assert figures["map"] == pytest.approx(evaluated[-1]["ema_held_out_map"], abs=1e-6) and f"mAP {figures['map']:.2%}" in told


def test_the_list_of_programs_names_both_words() -> None:
    assert programs()["localize"] == ("train.localize", (localize.__doc__ or "").partition("\n")[0])
    assert "`localize evaluate RUN` judges" in programs()["localize"][1]


def test_every_field_says_what_it_is_and_can_be_said() -> None:
    for make in RECIPES.values():
        config = make()
        for name, (field, _) in fields_of(config).items():
            value = value_of(config, name)
            assert Kind.of(field.type).read(spoken(value), name) == value
    for group in {name.rpartition(".")[0] for name in fields_of(config)}:
        owner = value_of(config, group) if group else config
        assert all(field_texts(type(owner)).get(name) for name in fields_of(owner) if "." not in name), group


def test_recipes_are_the_public_configurations() -> None:
    """ActionFormer's for THUMOS14 and ActivityNet, and InternVideo's for FineAction."""
    thumos, fine = RECIPES["thumos14"](), RECIPES["fineaction"]()
    assert (thumos.peak_lr, thumos.final_lr) == pytest.approx((1e-4, 1e-8)) and fine.peak_lr == pytest.approx(1e-3)
    assert thumos.warmup_steps(thumos.total_steps(100)) == 500 and thumos.total_steps(100) == 5000
    assert fine.warmup_steps(fine.total_steps(40)) == 200 and fine.total_steps(40) == 1000
    assert thumos.model.strides == [1, 2, 4, 8, 16, 32] and fine.model.level_windows == [7, 7, 7, 7, 7, -1]
    public = RECIPES["thumos14-i3d"]()
    sizes = shapes_of(public.model, 20)
    assert sum(math.prod(shape) for shape in sizes.values()) == 29_251_612 and sizes["cls_head.cls_head.conv.bias"] == (20,)


def test_it_begins_with_the_public_codes_weights(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of other classes without their last layer; whatever else does not fit is named."""
    model = RECIPES["tiny"]().model
    config = from_command_line(RECIPES, words(made))
    for classes, fresh in ((4, 0), (7, 2)):
        weights = {name: torch.full(shape, 0.5) for name, shape in shapes_of(config.model, classes).items()}
        file = tmp_path / f"{classes}.pth.tar"
        torch.save({"state_dict_ema": {f"module.{n}": t for n, t in as_actionformer(weights).items()}, "state_dict": {}}, file)
        stage = Localizing(from_command_line(RECIPES, words(made, "--init", str(file))))
        with torch.device("meta"):
            network: Any = stage.model(None)  # type: ignore[arg-type]
        found = stage.start_from(network)
        assert found is not None and len(found.fresh) == fresh and "localizer, features 16 wide" in str(found.weights)
        assert set(found.taken) | set(found.fresh) == dict(network.named_parameters()).keys()
    assert main(words(made, "--init", str(file), "--model.dim", "32", "--steps", "1", "--out", str(tmp_path / "a"))) == 2
    assert "backbone.embd.0.conv.weight is (16, 16, 3), not (32, 16, 3)" in capsys.readouterr().err
    assert model.dim == 32


def test_what_cannot_be_is_refused(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, logits = ("--out", str(tmp_path / "none")), tmp_path / "logits.json"
    logits.write_text('{"a": [2, -1.5, 0, 1]}')
    for options, wanted in (
        (
            ["--evaluate-every", "1", "--evaluate-split", "test"],
            "no clip of 'test'; it has train (10 clips), val (3 clips)",
        ),
        (["--model.input-dim", "8"], "13 files of features are left out: video_train_0000.npy has the shape"),
        (["--views.views-per-clip", "2"], "a step takes parts of videos, one of each"),
        (["--judge.external-scores", "x.json"], "they are for --one-class"),
        (
            ["--evaluate-every", "1", "--one-class", "--judge.external-scores", str(logits)],
            "a has -1.5 for jump; a score must be at least 0 and finite",
        ),
        (["--views.views-per-step", "11"], "and one step takes 11"),
    ):
        assert refused(words(made, "--steps", "1", *options, *out)) and wanted in capsys.readouterr().err, wanted
    assert not (tmp_path / "none").exists()
    assert main([*SMALL, "--steps", "1", *out]) == 2
    assert "--features FOLDER, --annotations JSON and --out RUN are needed" in capsys.readouterr().err
    assert main(["evaluate", str(made[0] / "video_val_0000.npy")]) == 2
    assert "--recipe is needed" in capsys.readouterr().err


def refused(arguments: list[str]) -> bool:
    try:
        return main(arguments) == 2
    except SystemExit as ended:  # by what reads the command line
        return ended.code == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_neither_a_kill_nor_other_ranks_change_what_is_learned(made: Made, tmp_path: Path) -> None:
    options = ("--steps", "12", "--save-every", "4")
    run(None, tmp_path / "whole", *options, given=words(made), program=FILE)
    whole = losses(tmp_path / "whole")
    weights = load_file(tmp_path / "whole" / "model_ema.safetensors")

    trainer = start(None, tmp_path / "killed", *options, given=words(made), program=FILE).until(6).send(signal.SIGKILL)
    assert trainer.wait() != [0]
    run(None, tmp_path / "killed", *options, given=words(made), program=FILE)
    assert losses(tmp_path / "killed") == whole
    for name, tensor in load_file(tmp_path / "killed" / "model_ema.safetensors").items():
        assert torch.equal(tensor, weights[name]), name

    start(None, tmp_path / "two", *options, given=words(made), program=FILE, ranks=2).until(5).send(signal.SIGTERM).said(0)
    run(None, tmp_path / "two", *options, "--compute.views-per-forward", "1", given=words(made), program=FILE)
    assert list(losses(tmp_path / "two").values()) == pytest.approx(list(whole.values()), rel=1e-5)
    for name, tensor in load_file(tmp_path / "two" / "model_ema.safetensors").items():
        assert torch.allclose(tensor, weights[name], atol=1e-5), name


def prior(made: FeatureSet) -> float:
    """mAP on val of who knows the training videos' classes and lengths, and nothing of the video: segments of the usual length
    all over it, each with all classes by their share."""
    train = [action for video in made.videos if video.split == "train" for action in video.actions]
    length = float(np.median([action.end - action.begin for action in train]))
    share = [np.mean([made.label(action) == label for action in train]) for label in range(len(made.names))]
    found: dict[int, Found | str] = {}
    for row, video in enumerate(made.videos):
        if video.split == "val":
            begins = torch.arange(0, max(video.duration - length, 0.1), length / 2)
            segments = torch.stack([begins, begins + length], 1).repeat(len(share), 1)
            scores = torch.tensor(share).float().repeat_interleave(len(begins))
            found[row] = Found(segments, scores, torch.arange(len(share)).repeat_interleave(len(begins)))
    return judge(made, found, JudgeConfig()).figures["map"]


def of_renamed_actions(made: FeatureSet, out: Path) -> np.ndarray:
    """mAP of what a run found on val (24,): as it is, and with the classes called otherwise, in every way. To one that does not
    know which action is which all are the same; that actions are there is learned of any labels."""
    results = json.loads((out / "localization" / "predictions.json").read_text())["results"]
    every = [
        (name, *each["segment"], made.names.index(each["label"]), each["score"]) for name in results for each in results[name]
    ]
    videos, begins, ends, labels, scores = map(np.array, zip(*every, strict=True))
    truth = {
        video.key: [(action.begin, action.end, made.label(action)) for action in video.actions]
        for video in made.videos
        if video.split == "val"
    }
    segments = np.stack([begins, ends], 1)
    return np.array(
        [
            mean_precision(truth, Predicted(videos, segments, np.array(names)[labels], scores), THUMOS).average
            for names in permutations(range(len(made.names)))
        ]
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_learns_when_which_action_is(tmp_path: Path) -> None:
    """On videos that it was not trained on: the lower end of the 95 % interval over three seeds is far above the prior, and no
    other names of the classes fit what it finds. Of labels that say nothing it learns where something is, and not what."""
    told, gained, control = list[str](), list[float](), list[float]()
    config, options = (
        RECIPES["tiny"](),
        ("--steps", "100", "--evaluate-every", "100", "--ema", "0.9", "--judge.pictures", "0"),
    )
    for seed in range(3):
        for shuffled in (False, True):
            files = write_features(tmp_path / f"made-{seed}-{shuffled}", {"train": 24, "val": 12}, seed, shuffled=shuffled)
            made, out = FeatureSet(files[1], files[0], config.model, config.sequence), tmp_path / f"run-{seed}-{shuffled}"
            run(None, out, *options, "--seed", str(seed), given=words(files), program=FILE)
            worth, *others = of_renamed_actions(made, out)
            assert lines(out / "evaluations.jsonl")[-1]["ema_held_out_map"] == pytest.approx(worth, abs=2e-3)
            known, mean, deviation = prior(made), np.mean([worth, *others]), np.std([worth, *others])
            told.append(
                f"{seed} {'shuffled' if shuffled else 'real'}: {worth:.3f}, prior {known:.3f}, renamed {mean:.3f} ± "
                f"{deviation:.3f}, at most {max(others):.3f}"
            )
            if shuffled:
                control.append((worth - mean) / deviation)
            else:
                gained.append(worth - known)
                assert worth > max(others) + 0.05, told
    print(*told, sep="\n")
    lower = np.mean(gained) - 4.303 * np.std(gained, ddof=1) / math.sqrt(3)  # Student's t with two degrees of freedom
    assert lower > 0.2, told
    assert abs(np.mean(control)) < 2.6 / math.sqrt(3) and max(control) < 2.6, told
