"""What a run recomputes and how many views its passes have, where nobody said."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from pipeline.decoding.decoder_choice import DALI_RATES
from pipeline.sampling import Views
from train.compute.memory import GIB, HEADROOM
from train.compute.parallel import Ranks
from train.compute.plan import Card, Plan, plan, planned
from train.config import ComputeConfig, RunConfig
from train.recipes.finetuning import RECIPES as FINETUNING
from train.recipes.pretraining import RECIPES
from train.recipes.probing import RECIPES as PROBING
from train.run.dry_run import describe
from train.stages.finetuning import Finetuning
from train.stages.pretraining import PretrainConfig, Pretraining
from train.stages.probing import Probing


def plan_of(config: RunConfig, ranks: int, gb: float, free: float | None = None, **compute: Any) -> Plan:
    stages = {"PretrainConfig": Pretraining, "FinetuneConfig": Finetuning, "ProbeConfig": Probing}
    stage = stages[type(config).__name__](replace(config, compute=replace(config.compute, **compute)))  # type: ignore[type-var]
    found = plan(stage, ranks, min(ranks, 8), Card(gb * 1e9, (free or gb) * 1e9))  # type: ignore[arg-type]
    assert found.fits == (found.memory.total <= (1 - HEADROOM) * (free or gb) * 1e9)
    assert found.compute.views_per_forward == found.views
    assert found.passes * found.views * ranks == config.views.views_per_step
    return found


@pytest.mark.parametrize("ranks", [8, 64])
@pytest.mark.parametrize("gb", [80, 141])
def test_vit_g_recomputes_nothing_where_its_activations_fit(ranks: int, gb: float) -> None:
    found = plan_of(RECIPES["vit-g-hybrid"](), ranks, gb)
    assert (found.compute.activation_checkpointing, found.views, found.passes) == ("none", 128, 64 // ranks)
    assert found.fits and found.more == 0
    text = describe(Pretraining(RECIPES["vit-g-hybrid"]()), ranks)
    assert f"on {gb} GB, {found}\n" in text
    assert str(found).startswith(f"activations: none recomputed, in {64 // ranks} pass")


def test_a_small_card_recomputes_as_little_as_it_must() -> None:
    config = RECIPES["vit-g-hybrid"]()
    found = plan_of(config, 8, 12)
    assert found.fits and 0 < found.more < 0.05 and found.views == 16  # less would keep the device waiting for the host
    assert str(found).startswith("activations: 6 of 44 blocks recomputed (3.3% more FLOPs), in 64 passes of 16 views: 10.0 of")
    assert plan_of(config, 8, 12, **vars_of(found.compute)) == found  # as it would be if all that had been said
    tiny = plan_of(config, 1, 12)
    assert not tiny.fits and all(tiny.recomputed) and tiny.views == config.views.views_per_clip
    assert str(tiny).endswith("17.7 of 11.2 GiB, which leaves less than 10% to spare")


def vars_of(compute: ComputeConfig) -> dict[str, Any]:
    return {name: getattr(compute, name) for name in ("activation_checkpointing", "views_per_forward")}


def test_a_step_of_vit_b_is_one_pass() -> None:
    assert plan_of(RECIPES["vit-b-hybrid"](), 8, 80).passes == 1  # of 512 views
    assert plan_of(replace(RECIPES["vit-b-hybrid"](), views=Views(views_per_step=512)), 1, 80).passes == 1


def test_what_was_said_stays() -> None:
    config = RECIPES["vit-g-hybrid"]()
    assert plan_of(config, 8, 80, activation_checkpointing="full").views == 512  # and no more, whatever there is
    few = plan_of(config, 8, 80, views_per_forward=40)
    assert (few.compute.activation_checkpointing, few.views) == ("none", 32)
    many = plan_of(config, 8, 80, views_per_forward=256)
    assert many.compute.activation_checkpointing.startswith("budget:") and many.fits and many.views == 256
    assert plan_of(config, 8, 24, views_per_forward=8192).compute.activation_checkpointing == "full"
    budget = plan_of(config, 8, 80, activation_checkpointing="budget:20")
    assert (budget.views, budget.compute.activation_checkpointing) == (128, "budget:20")
    assert budget.memory.activations <= 20 * GIB


def test_where_the_number_of_views_matters_it_stays() -> None:
    for config in (
        PretrainConfig(decoder_mask="random", views=Views(views_per_step=4096)),
        PretrainConfig(mask="random", views=Views(views_per_step=4096, mask_ratio=0.75)),
    ):
        assert config.views_matter
        assert plan_of(config, 8, 141).views == 128
        assert plan_of(config, 8, 8).views == 128  # with as much recomputed as that takes
    assert not PretrainConfig(mask="random", views=Views(decoder_mask_ratio=0.0)).views_matter
    assert not PretrainConfig().views_matter


@pytest.mark.parametrize(
    ("book", "name", "gb", "policy", "views"),
    [
        (FINETUNING, "vit-g-k710", 80, "none", 16),  # pairs of clips, two views each
        (FINETUNING, "vit-g-k710", 40, "none", 8),
        (FINETUNING, "vit-g-k710-k400-64x266", 80, "budget", 4),
        (PROBING, "vit-b-own", 80, "none", 32),
    ],
)
def test_other_stages(book: Any, name: str, gb: float, policy: str, views: int) -> None:
    found = plan_of(book[name](), 8, gb)
    assert (found.compute.activation_checkpointing.partition(":")[0], found.views) == (policy, views)
    assert found.fits


def test_other_programs_count_and_a_context_does_not() -> None:
    config = RECIPES["vit-g-hybrid"]()
    assert plan_of(config, 8, 80, 79.3).views == 128
    found = plan_of(config, 8, 80, 50)
    assert (found.views, found.fits) == (64, True)
    assert str(found).endswith(" of the 46.6 GiB that other programs leave of 74.5 GiB")


def test_dali_keeps_batches_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    config = RECIPES["vit-g-hybrid"]()
    dali = replace(config, loader=replace(config.loader, decoder="dali"))
    assert plan_of(dali, 8, 80).memory.inputs == 2.5 * plan_of(config, 8, 80).memory.inputs
    monkeypatch.setitem(DALI_RATES, "H100", 300.0)  # "auto" may take it only where it was measured
    assert plan_of(config, 8, 80).memory.inputs == plan_of(dali, 8, 80).memory.inputs


class Others(Ranks):
    """Ranks whose cards have these bytes, all of them free."""

    cards = (141e9, 24e9)

    def gather(self, value: Card) -> list[Any]:
        return [value, *(Card(size, size) for size in self.cards)]


def test_ranks_agree_on_the_smallest_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (79.5e9, 80e9))
    stage = Pretraining(RECIPES["vit-g-hybrid"]())
    made, found = planned(stage, Others(0, 8, 8, torch.device("cuda", 0)))
    assert found == plan(stage, 8, 8, Card(24e9, 24e9)) and found.views == 32
    assert made.config == replace(stage.config, compute=found.compute)
    assert made.config.accumulation(8) == found.passes
    assert stage.config.compute == ComputeConfig()  # as it was
    alone = planned(stage, Ranks(0, 1, 1, torch.device("cuda", 0)))[1]
    assert (alone.card, alone.views) == (Card(80e9, 79.5e9), 64)


@pytest.mark.parametrize(("name", "gib", "views"), [("tiny", 4, 8), ("vit-b-hybrid", 64, 128), ("vit-b-hybrid", 8, 32)])
def test_a_cpu_computes_as_ever(name: str, gib: float, views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """None recomputed, 128 views, but for what the machine's memory cannot hold."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2 * gib * GIB))
    stage, two = Pretraining(RECIPES[name]()), Others(0, 2, 2, torch.device("cpu"))
    made, found = planned(stage, two)
    assert (found.compute.activation_checkpointing, found.views, found.fits) == ("none", views, True)
    assert gib == 8 or made.config.accumulation(2) == stage.config.accumulation(2)
