"""What a dry run says of memory."""

import re
from dataclasses import replace

import pytest
import torch

from train.command_line import from_command_line
from train.compute.memory import GIB, HEADROOM
from train.config import ComputeConfig
from train.recipes.pretraining import RECIPES
from train.run.dry_run import describe, duration, largest_views, planned_cards, predicted_memory
from train.stages.pretraining import Pretraining


def test_vit_g_on_eight_cards_of_80_gb() -> None:
    """128 views without activation checkpointing, as the design reckons; far more with it."""
    stage, config, card = Pretraining(RECIPES["vit-g-hybrid"]()), RECIPES["vit-g-hybrid"](), 80e9
    views = largest_views(stage, config.compute, 8, card)
    assert views >= 128
    assert views % config.views.views_per_clip == 0
    assert predicted_memory(stage, config.compute, 8, views).total <= (1 - HEADROOM) * card
    assert predicted_memory(stage, config.compute, 8, views + config.views.views_per_clip).total > (1 - HEADROOM) * card
    full = replace(config.compute, activation_checkpointing="full")
    assert largest_views(stage, full, 8, card) > 4 * views
    assert largest_views(stage, config.compute, 1, 20e9) == 0  # the state of one rank alone is 17 GB


def test_a_budget_bounds_the_views() -> None:
    config = from_command_line(RECIPES, ["vit-g-hybrid", "--compute.activation-checkpointing", "budget:4"])
    stage = Pretraining(config)
    views = largest_views(stage, config.compute, 8, 80e9)
    assert predicted_memory(stage, config.compute, 8, views).activations <= 4 * GIB
    with pytest.raises(ValueError, match=r"budget:4: .* even if every block runs again"):
        predicted_memory(stage, config.compute, 8, views + 4)


def test_the_plan_is_a_table_of_policies() -> None:
    config = from_command_line(RECIPES, ["vit-b-hybrid", "--compute.memory-gib", "24", "--compute.reshard-after-forward"])
    assert planned_cards(config) == {"24 GiB": 24 * GIB}
    text = describe(Pretraining(config), 1)
    assert "memory of one of 1 rank, 1 to a copy of the state" in text
    assert "memory of one of 8 ranks, 8 to a copy of the state" in text
    rows = {name: text.split(f"  {name} ")[1].split("\n")[0] for name in ("none", "every:4", "every:2", "full")}
    kept = [float(row.split()[0]) for row in rows.values()]
    again = [float(re.findall(r"([\d.]+)%", row)[0]) for row in rows.values()]
    views = [int(row.split()[-1]) for row in rows.values()]
    assert kept == sorted(kept, reverse=True)
    assert again == sorted(again)
    assert views == sorted(views)
    assert (kept[0], again[0], again[-1]) == (93.7, 0.0, 23.1)
    assert "on 24 GiB, activations: none recomputed, in 32 passes of 128 views: 15.8 of 24.0 GiB\n" in text
    assert "on the host 1.05, for checkpoints that are being written" in text  # 12 bytes a parameter


def test_ranks_that_cannot_share_are_refused() -> None:
    config = from_command_line(RECIPES, ["vit-b-hybrid", "--compute.shard", "3"])
    with pytest.raises(ValueError, match=r"--compute.shard: 3 must divide the 8 ranks; possible: 1, 2, 4, 8"):
        describe(Pretraining(config), 8)


@pytest.mark.parametrize(
    ("card", "flags", "said"),
    [
        ("", "", "60 GPU-days, 180 h on 8 GPUs, 22.5 h on 64, at --mfu 0.45 of the 989 TFLOP/s of an H100 in bf16"),
        ("NVIDIA A100-SXM4", "", "190 GPU-days, 571 h on 8 GPUs, 71.3 h on 64, at --mfu 0.45 of the 312 TFLOP/s of this"),
        ("NVIDIA T4", "--mfu 0.9", "30 GPU-days, 90 h on 8 GPUs, 11.2 h on 64, at --mfu 0.9 of the 989 TFLOP/s of an H100 in"),
        ("", "--compute.precision tf32", "120 GPU-days, 360 h on 8 GPUs, 45 h on 64, at --mfu 0.45 of the 494.5 TFLOP/s of an"),
        (
            "",
            "--compute.precision paper",
            "60 GPU-days, 180 h on 8 GPUs, 22.5 h on 64, at --mfu 0.45 of the 989 TFLOP/s of",
        ),
    ],
)
def test_how_long_a_run_takes(card: str, flags: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(card))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: card)
    config = from_command_line(RECIPES, ["vit-g-hybrid", *flags.split()])
    text = duration(config, 0.45 * 989e12 * 60 * 86400)  # 60 days of an H100
    assert text.startswith(said)
    assert text.endswith("(paper takes longer)") == ("paper" in flags)
    assert duration(config, 1e12).startswith("under 0.01 GPU-days")


@pytest.mark.parametrize("option", [{"shard": 0}, {"memory_gib": 0.0}])
def test_impossible_numbers_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"--compute.{next(iter(option)).replace('_', '-')} 0.* must be"):
        ComputeConfig(**option)  # type: ignore[arg-type]
