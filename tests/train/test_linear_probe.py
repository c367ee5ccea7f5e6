"""Probing: what heads learn of a frozen encoder's features, each as if it were alone, and what is made of the best."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.attentive_heads import AttentiveHeads
from model.video_encoder import load_encoder
from model.weights import read_weights
from pipeline.labels import Labels
from pipeline.storage.manifest import Manifest
from tests.page_reader import Page
from tests.train.trainers import SMALL, lines, losses, run, start
from train import convert, evaluate, inspect_checkpoints, report
from train.checkpoint import descent
from train.checkpoint.source import read_source
from train.checkpoint.weights import read_weights as read_checkpoint
from train.command_line import from_command_line
from train.pages.run_record import RunRecord
from train.recipes.probing import RECIPES
from train.run.dry_run import beginning, describe
from train.stages.probing import Probing

FILE = Path(__file__).resolve().parents[2] / "train" / "probe.py"
GRID = ("--lrs", "1", "10", "--weight-decays", "0", "0.1", "--flip", "0.5", "--ema", "0.5", "--model.positions-size", "32")
ATTENTIVE = ("--probe", "attentive", "--probe-depth", "2", "--optim.optimizer", "adamw", "--lrs", "1e-3", "1e-2")
EIGHT = ("--steps", "8", "--save-every", "2", "--evaluate-every", "4")


@pytest.fixture(scope="module")
def encoder(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("encoder") / "run"
    run(labelled, out, "--steps", "2")
    return out


@pytest.fixture(scope="module")
def grid(labelled: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four heads, with everything random on."""
    out = tmp_path_factory.mktemp("grid") / "run"
    run(labelled, out, "--init", str(encoder), *GRID, *EIGHT, program=FILE)
    return out


@pytest.fixture(scope="module")
def attentive(labelled: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of attentive heads, of two blocks."""
    out = tmp_path_factory.mktemp("attentive") / "run"
    run(labelled, out, "--init", str(encoder), *GRID, *ATTENTIVE, *EIGHT, program=FILE)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grid", "attentive"])
def test_killed_and_on_other_ranks_it_is_the_same_run(
    kind: str, labelled: Path, encoder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    grid: Path = request.getfixturevalue(kind)
    options = ("--init", str(encoder), *GRID, *EIGHT, *(ATTENTIVE if kind == "attentive" else ()))
    trainer = start(labelled, tmp_path / "killed", *options, program=FILE).until(5).send(signal.SIGKILL)
    assert trainer.wait() == [-signal.SIGKILL]
    run(labelled, tmp_path / "killed", *options, program=FILE)
    assert losses(tmp_path / "killed") == losses(grid)
    for name in ("model", "model_ema"):
        one, other = (load_file(out / f"{name}.safetensors") for out in (grid, tmp_path / "killed"))
        assert one.keys() == other.keys() and all(torch.equal(tensor, other[key]) for key, tensor in one.items())

    trainer = start(labelled, tmp_path / "fewer", *options, ranks=2, program=FILE).until(5).send(signal.SIGTERM)
    assert trainer.wait() == [0, 0]
    run(labelled, tmp_path / "fewer", *options, "--compute.views-per-forward", "4", program=FILE)
    assert losses(tmp_path / "fewer") == pytest.approx(losses(grid), rel=1e-5)
    said = start(labelled, tmp_path / "fewer", *options, "--probe-depth", "3", "--probe", "attentive", program=FILE).said(2)
    assert f"--probe-depth {2 if kind == 'attentive' else 1} -> 3" in said


def test_a_head_is_what_it_is_alone(labelled: Path, encoder: Path, grid: Path, tmp_path: Path) -> None:
    run(
        labelled,
        tmp_path / "alone",
        *("--init", str(encoder), "--lrs", "--optim.base-lr", "10", "--weight-decays", "--optim.weight-decay", "0.1"),
        *(*GRID[6:], "--steps", "8"),
        *("--evaluate-every", "4"),
        program=FILE,
    )
    name, (one, alone) = "lr10_wd0.1", [lines(out / "metrics.jsonl") for out in (grid, tmp_path / "alone")]
    assert [line[f"loss_{name}"] for line in one] == pytest.approx([line["loss"] for line in alone], rel=1e-6)
    assert [line[f"top1_{name}"] for line in one] == [line["top1"] for line in alone]
    assert [line["loss"] for line in one] == pytest.approx(
        [sum(value for key, value in line.items() if key.startswith("loss_lr")) for line in one], rel=1e-6
    )
    heads, alone_heads = (read_checkpoint(out / "checkpoints" / "step-00000008") for out in (grid, tmp_path / "alone"))
    assert len(heads) == 8 and heads.keys() > alone_heads.keys() == {"heads.0.weight", "heads.0.bias"}
    for leaf in ("weight", "bias"):
        torch.testing.assert_close(heads[f"heads.3.{leaf}"], alone_heads[f"heads.0.{leaf}"], rtol=0, atol=1e-6)
        assert not torch.equal(heads[f"heads.3.{leaf}"], heads[f"heads.2.{leaf}"])
    found = lines(tmp_path / "alone" / "evaluations.jsonl")[-1]
    assert {name for name in found if "held" in name and "ema" not in name} == {
        f"held_out_{name}" for name in ("loss", "top1", "top5")
    }


def test_the_best_head_and_its_encoder_are_a_classifier(
    labelled: Path, encoder: Path, grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the last evaluation: exported, read from a checkpoint, consolidated, converted and evaluated."""
    names, evaluated = [f"lr{lr}_wd{decay}" for lr in (1, 10) for decay in ("0", "0.1")], lines(grid / "evaluations.jsonl")
    assert [(line["step"], line["clips"], line["of"]) for line in evaluated] == [(4, 7, 7), (8, 7, 7)]
    top1 = {name: evaluated[-1][f"held_out_top1_{name}"] for name in names}
    best = f"lr{evaluated[-1]['best_lr']:g}_wd{evaluated[-1]['best_weight_decay']:g}"
    assert evaluated[-1]["held_out_top1"] == top1[best] == max(top1.values())
    assert evaluated[-1]["ema_best_lr"] in (1, 10) and "held_out_top5" in evaluated[-1]

    whole, begun = load_file(grid / "model.safetensors"), load_file(encoder / "model.safetensors")
    heads = read_checkpoint(grid / "checkpoints" / "step-00000008")
    assert torch.equal(whole["head.weight"], heads[f"heads.{names.index(best)}.weight"])
    trunk = {name: tensor for name, tensor in whole.items() if not name.startswith("head.")}
    assert trunk and all(torch.equal(tensor, begun[f"encoder.{name}"]) for name, tensor in trunk.items())
    weights = read_weights(grid / "model.safetensors")
    assert weights.labels == Labels(Manifest(labelled), "train").names and weights.metadata["head"].startswith(
        f"{best}, the best"
    )
    step, file = max((line["held_out_top1"], -line["step"]) for line in evaluated), read_weights(grid / "best.safetensors")
    assert (float(file.metadata["value"]), -int(file.metadata["step"])) == step and "the best of 4" in file.metadata["head"]
    for place in (grid, grid / "checkpoints" / "step-00000008"):
        again = read_source(place)
        assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in whole.items())
    clips = torch.randint(256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    features, logits = load_encoder(encoder / "model.safetensors")(clips), weights.build()(clips)
    torch.testing.assert_close(logits, features @ whole["head.weight"].T + whole["head.bias"])
    torch.testing.assert_close(load_encoder(grid / "model.safetensors")(clips), logits)

    assert inspect_checkpoints.main([str(grid), "--step", "6", "--consolidate", str(tmp_path / "six.safetensors")]) == 0
    assert "the best of 4" in read_weights(tmp_path / "six.safetensors").metadata["head"]
    assert convert.main([str(grid), str(tmp_path / "whole.safetensors"), "--to", "tubecell", "--verify"]) == 0
    assert convert.main([str(grid), str(tmp_path / "hf"), "--to", "hf"]) == 2
    assert "its norm is of every token" in capsys.readouterr().err
    command = [str(grid), "--data", str(labelled), "--split", "val", "--views", "1x1", "--workers", "1"]
    assert evaluate.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["clips"] == 7


def test_attentive_heads_and_their_encoder_are_a_classifier(
    labelled: Path, encoder: Path, attentive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever reads weights reads it; and each head is as it would be alone."""
    (last,) = [line for line in lines(attentive / "evaluations.jsonl") if line["step"] == 8]
    best = f"lr{last['best_lr']:g}_wd{last['best_weight_decay']:g}"
    weights = read_weights(attentive / "model.safetensors")
    assert weights.metadata["head"] == f"{best}, the best of 4"
    clips = torch.randint(256, (2, 8, 32, 32, 3), dtype=torch.uint8)
    logits, trunk = weights.build()(clips), load_encoder(encoder / "model.safetensors")
    torch.testing.assert_close(load_encoder(attentive / "model.safetensors")(clips), logits)
    heads = read_checkpoint(attentive / "checkpoints" / "step-00000008")
    model = AttentiveHeads(32, 2, 2, 8, 4)
    model.load_state_dict(heads)
    place = [f"lr{lr:g}_wd{decay:g}" for lr in (1e-3, 1e-2) for decay in (0, 0.1)].index(best)
    torch.testing.assert_close(model(trunk.forward_features(clips)).split(8, 1)[place], logits)

    assert convert.main([str(attentive), str(tmp_path / "whole.safetensors"), "--to", "tubecell", "--verify"]) == 0
    assert convert.main([str(attentive), str(tmp_path / "official.pth"), "--to", "official"]) == 2
    assert "its norm is of every token" in capsys.readouterr().err
    command = [str(attentive), "--data", str(labelled), "--split", "val", "--views", "1x1", "--workers", "1"]
    assert evaluate.main([*command, "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["top1"] == pytest.approx(last["held_out_top1"])


@pytest.mark.parametrize("kind", ["grid", "attentive"])
def test_a_result_has_all_that_decided_it(kind: str, encoder: Path, request: pytest.FixtureRequest) -> None:
    """In probe.json, in the card, and on the page, where settings have one table and one chart."""
    run: Path = request.getfixturevalue(kind)
    found, last = json.loads((run / "probe.json").read_text()), lines(run / "evaluations.jsonl")[-1]
    names = [f"lr{row['lr']:g}_wd{row['weight_decay']:g}" for row in found["settings"]]
    assert [row["top1"] for row in found["settings"]] == [last[f"held_out_top1_{name}"] for name in names]
    best = last["best_lr"], last["best_weight_decay"]
    chosen = {"of": 4, "by": "top-1", "split": "val", "step": 8, "top1": last["held_out_top1"]}
    assert found["chosen"] == dict(zip(("lr", "weight_decay"), best, strict=True)) | chosen
    linear = kind == "grid"
    assert found["features"]["encoder"]["fingerprint"] == descent.fingerprint(load_file(encoder / "model.safetensors"))
    what = "the mean over a view's tokens after the last norm" if linear else "all of a view's tokens, after the last norm"
    assert found["features"]["what"] == what
    assert found["probe"] == {"kind": "linear"} if linear else {"kind": "attentive", "depth": 2, "attention_heads": 2}
    assert found["optimizer"]["name"] == ("sgd" if linear else "adamw")
    assert found["optimizer"]["decayed"] == ("weights, not biases" if linear else "everything")
    views = {"frames": 8, "size": 32, "crop": "multi_scale", "flip": 0.5, "a_step": 8, "other_augmentation": "none"}
    assert found["views"].items() >= views.items()
    assert (found["evaluated"]["clips"], found["evaluated"]["of"], found["schedule"]["steps"]) == (7, 7, 8)
    assert found["dataset"]["fingerprint"] and found["versions"]["packages"]["torch"]

    card, page = (run / "card.md").read_text(), Page(report.page([RunRecord.read(run)]))
    told = f"lr {best[0]:g}, weight decay {best[1]:g}, the best top-1 on split val after step 8. Top-1 of all 4:"
    assert told in card and card.count("%") == 4
    assert "Settings of the probe" in page.text and f"{last['held_out_top1']:.2%} ★" in page.text
    assert "Held out top1 lr" not in page.text and "Top1 lr" not in page.text


@pytest.mark.slow
def test_an_attentive_head_is_what_it_is_alone(labelled: Path, encoder: Path, attentive: Path, tmp_path: Path) -> None:
    alone = (*ATTENTIVE[:-3], "--lrs", "--optim.base-lr", "1e-2", "--weight-decays", "--optim.weight-decay", "0.1")
    run(labelled, tmp_path / "alone", "--init", str(encoder), *GRID[6:], *alone, *EIGHT, program=FILE)
    one, other = (lines(out / "metrics.jsonl") for out in (attentive, tmp_path / "alone"))
    assert [line["loss_lr0.01_wd0.1"] for line in one] == pytest.approx([line["loss"] for line in other], rel=1e-4)


@pytest.mark.slow
def test_it_learns_what_clips_show(labelled: Path, encoder: Path, tmp_path: Path) -> None:
    options = ("--init", str(encoder), "--lrs", "1", "30", "--steps", "150", "--log-every", "50")
    run(labelled, tmp_path / "run", *options, "--evaluate-every", "150", "--evaluate-split", "train", program=FILE)
    (found,) = lines(tmp_path / "run" / "evaluations.jsonl")
    assert found["held_out_top1"] > 0.8, found


def test_what_it_would_be(encoder: Path, labelled: Path) -> None:
    """Parameters to the one, FLOPs of a forward pass, and no memory of activations."""
    told = " ".join(describe(Probing(RECIPES["vit-b-ssv2"]()), 1).split())
    assert f"parameters {768 * 174 + 174:,} classes 174 (expected" in told
    assert "encoder 86,227,200 parameters, frozen; forward 180.34 GMAC a view of 1568 tokens" in told
    for figure in ("peak 4.00e-01, end 0.00e+00", "1,024 views = 1,024 clips x 1", "100 epochs; warm-up 1,640"):
        assert figure in told
    small = from_command_line(RECIPES, [*SMALL, "--data", str(labelled), "--init", str(encoder), "--dry-run"])
    stage = Probing(small)
    assert "heads lr1_wd0, lr1_wd0.001, lr3_wd0, lr3_wd0.001" in " ".join(describe(stage, 1).split())
    said = beginning(stage)
    for words in ("begins with", "tensors, is run and stays as it is\n", "  not taken: decoder."):
        assert words in said, said


def test_table_10(shared: Path) -> None:
    """Of VideoMAE V1, line by line."""
    table = (shared / "papers" / "videomae_v1.txt").read_text().partition("warmup epochs\t10\n")
    before, config = table[0].rpartition("config\tSth-Sth V2\n")[2], RECIPES["vit-b-ssv2"]()
    assert table[2].startswith("training epochs\t100\naugmentation\tMultiScaleCrop\n\nTable 10. **Linear probing setting.**")
    said = dict(line.split("\t") for line in before.splitlines())
    optim, views = config.optim, config.views
    assert said["optimizer"].lower() == optim.optimizer and float(said["optimizer momentum"]) == optim.momentum
    assert float(said["base learning rate"]) == optim.base_lr and float(said["weight decay"]) == optim.weight_decay
    assert int(said["batch size"]) == views.views_per_step == config.sampling.clips_per_step
    assert (config.epochs, config.warmup_steps(100), config.crop, config.flip) == (100, 10, "multi_scale", 0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_described(name: str) -> None:
    assert "GMAC" in describe(Probing(RECIPES[name]()), 1)
    assert any(word in (RECIPES[name].__doc__ or "") for word in ("ours", "Ours"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--lrs", "0.1", "0.1"), "--lrs and --weight-decays: lr0.1_wd0 is there 2 times"),
        (("--lrs", "0"), "--lrs 0 must be over 0"),
        (("--weight-decays", "-1"), "--weight-decays -1 at least 0"),
        (
            ("--lrs", "32", "--weight-decays", "0.5"),
            "--lrs 32 for 256 views, here 2, times --weight-decays 0.5",
        ),
        (("--optim.clip-grad", "1"), "--optim.clip-grad is of the norm over all 6 heads"),
        (("--optim.momentum", "1"), "--optim.momentum 1.0 must be at least 0 and less than 1"),
        (("--flip", "2"), "--flip 2.0 must be 0 to 1"),
        (("--freeze", "1"), "a probe trains no block at all"),
        (("--probe-depth", "4"), "--probe-depth 4: a linear probe has no blocks"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        from_command_line(RECIPES, ["tiny", "--weight-decays", "0", *options] if "--lrs" in options else ["tiny", *options])
    assert words in capsys.readouterr().err


def test_an_encoder_that_is_none_or_another_is_refused(labelled: Path, encoder: Path, tmp_path: Path) -> None:
    assert "--init WEIGHTS is needed" in start(labelled, tmp_path / "none", "--steps", "1", program=FILE).said(2)
    config = from_command_line(RECIPES, ["tiny", "--data", str(labelled), "--init", str(encoder)])
    with pytest.raises(ValueError, match=r"--init: .* does not fit the model: .* train a model of that size"):
        Probing(config)
