"""What a run would be, without data, model or GPU."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch

from model.config import Implementation
from pipeline.sampling import steps_per_epoch
from pipeline.sampling.order import order_of
from pipeline.sampling.splits import describe_split
from train.checkpoint.descent import Beginning
from train.compute.activation_checkpointing import recomputed_blocks
from train.compute.device_speed import data_sheet_flops
from train.compute.memory import GIB, HEADROOM, Cost, Costed, StepMemory, activation_bytes, cost_of, largest, recomputed_share
from train.compute.out_of_memory import predict
from train.compute.parallel import shard_size
from train.compute.plan import Card, plan
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig, LoopConfig, Policy
from train.stage import Stage

NODE = 8  # GPUs of a node, for numbers of ranks that are only thought of
CARDS = {"40 GB": 40e9, "80 GB": 80e9, "141 GB": 141e9}  # A100, A100 and H100, H200: bytes by the data sheets
ONE_GPU = ("H100", "L40S", "A100", "RTX 4090", "RTX 3090")
CARD = "H100"  # to reckon with where there is none, or an unknown one
POLICIES = ("none", "every:4", "every:2", "full")


def describe(stage: Costed, world_size: int) -> str:
    """The resolved configuration and the figures that follow from it, as text.

    Raises ValueError for what the run itself would refuse: views that cannot be shared, too few clips.
    """
    config = stage.config
    cost = cost_of(stage)
    sampling, views = config.sampling, config.views.views_per_step
    manifest = config.dataset() if config.has_data else None
    clips = f"{config.expected_clips:,} (expected; --data DATASET counts them)"
    if manifest:
        clips = f"{describe_split(manifest, sampling.split)}, of {config.place}"
    epoch = order_of(manifest, sampling).steps_per_epoch if manifest else steps_per_epoch(config.expected_clips, sampling)
    steps = config.total_steps(epoch)
    flops = cost.flops * steps * views
    lines = {
        "clips": clips,
        "parameters": f"{cost.sizes.whole:,}",
        **cost.notes,
        "steps": f"{steps:,} ({epoch:,} an epoch, {steps / epoch:g} epochs; warm-up {config.warmup_steps(steps):,})",
        "learning rate": f"peak {config.peak_lr:.2e}, end {config.final_lr:.2e} "
        f"({config.optim.base_lr:g} and {config.optim.base_min_lr:g} for 256 views)",
        "batch": f"{views:,} views = {sampling.clips_per_step:,} clips x {config.views.views_per_clip}",
        "whole run": f"{steps * views:,} views, {flops / 1e21:.3g} ZFLOP",
        "which takes": duration(config, flops),
        "on one GPU": one_gpu(config, flops),
    }
    for ranks in dict.fromkeys((world_size, 8, 64)):
        try:
            config.accumulation(ranks)
            lines[f"on {ranks} rank{'s' if ranks > 1 else ''}"] = f"{views // ranks:,} views a rank and step"
        except ValueError:
            if ranks == world_size:
                raise
    width = max(map(len, lines))
    figures = "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
    plans = ["\n".join(memory_plan(stage, cost, world_size))]
    if world_size < NODE:
        with contextlib.suppress(ValueError):  # what eight ranks cannot share
            plans.append("\n".join(memory_plan(stage, cost, NODE)))
    return "\n\n".join([json.dumps(asdict(config), indent=1, default=str), figures, *plans])


def beginning(stage: Stage) -> str:
    """What --init would give. Raises ValueError if it would not fit."""
    with torch.device("meta"):
        model = stage.model(Implementation())
    start = stage.start_from(model)
    return "\n".join(["", "", *Beginning.of(start, stage.config.model).lines]) if start else ""


def duration(config: LoopConfig, flops: float) -> str:
    """GPU-days of so many FLOPs at --mfu of this machine's card, or of CARD, and hours on 8 and 64 of them."""
    here = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    card = here if data_sheet_flops(here, PRECISIONS["bf16"]) else CARD
    name: str = config.compute.precision
    rate = data_sheet_flops(card, PRECISIONS[name])
    if rate is None:  # of two types, or of none that the data sheets are about
        name, rate = f"bf16 ({name} takes longer)", data_sheet_flops(card, PRECISIONS["bf16"])
    assert rate is not None
    hours = flops / (config.mfu * rate) / 3600
    days, eight, many = (
        "under 0.01" if number < 0.01 else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
        for number in (hours / 24, hours / 8, hours / 64)
    )
    return (
        f"{days} GPU-days, {eight} h on 8 GPUs, {many} h on 64, at --mfu {config.mfu:g} of the {rate / 1e12:g} TFLOP/s of "
        f"{'this' if card == here else 'an'} {card} in {name}"
    )


def one_gpu(config: LoopConfig, flops: float) -> str:
    """Hours on one of each of `ONE_GPU`, at --mfu of its data sheet in bf16."""
    rates = {card: data_sheet_flops(card, PRECISIONS["bf16"]) for card in ONE_GPU}
    hours = {card: flops / (config.mfu * rate) / 3600 for card, rate in rates.items() if rate}
    said = ", ".join(f"{number:,.0f} ({card})" if number >= 10 else f"{number:.2g} ({card})" for card, number in hours.items())
    return f"hours: {said}, at --mfu {config.mfu:g} of each data sheet"


def predicted_memory(
    stage: Costed, compute: ComputeConfig, world_size: int, views: int, cost: Cost | None = None
) -> StepMemory:
    """Of a forward and backward pass over `views` on one of `world_size` ranks, on nodes of at most eight. Raises ValueError as
    `predict` does."""
    return predict(stage, compute, world_size, min(world_size, NODE), views, cost)[0]


def largest_views(stage: Costed, compute: ComputeConfig, world_size: int, card: float, cost: Cost | None = None) -> int:
    """The most views of a forward pass, whole clips, that fit a card of so many bytes with `HEADROOM` to spare; 0 if none."""
    clip, cost = stage.config.views.views_per_clip, cost or cost_of(stage, compute)

    def fits(clips: int) -> bool:
        try:
            return predicted_memory(stage, compute, world_size, clips * clip, cost).total <= (1 - HEADROOM) * card
        except ValueError:  # more than its budget of activations
            return False

    shard_size(compute.shard, world_size, min(world_size, NODE))
    return clip * largest(fits)


def memory_plan(stage: Costed, cost: Cost, world_size: int) -> Iterator[str]:
    """What a rank holds, what the run would be on each of the cards, and how many views fit with each way of activation
    checkpointing."""
    config, local_world_size = stage.config, min(world_size, NODE)
    compute, cards = config.compute, planned_cards(config)
    plans = {name: plan(stage, world_size, local_world_size, Card(size, size), cost=cost) for name, size in cards.items()}
    memory = next(iter(plans.values())).memory
    gathered = [
        predicted_memory(stage, replace(compute, reshard_after_forward=reshard), world_size, 1, cost).gathered
        for reshard in (False, True)
    ]
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    shard = shard_size(compute.shard, world_size, local_world_size)
    yield f"memory of one of {ranks}, {shard} to a copy of the state, in GiB ({compute.precision})"
    yield (
        f"  master weights {memory.parameters / GIB:.2f}, moments {memory.moments / GIB:.2f}, gradients "
        f"{memory.gradients / GIB:.2f}, gathered weights {gathered[0] / GIB:.2f} (resharded {gathered[1] / GIB:.2f})"
    )
    if config.save_in_background:
        yield f"  on the host {(memory.parameters + memory.moments) / GIB:.2f}, for checkpoints that are being written"
    for name, each in plans.items():
        yield (
            f"on {name}, {each}\n  activations {each.memory.activations / GIB:.2f}, passing {each.memory.passing / GIB:.2f}, "
            f"inputs {each.memory.inputs / GIB:.2f}"
        )
    yield f"most views a forward pass, with {HEADROOM:.0%} of the card to spare"
    columns = "".join(f"{card:>10}" for card in cards)
    yield f"  {'activation checkpointing':<26}{'kept by a view':>16}{'FLOPs again':>13}{columns}"
    given = [] if Policy.parse(compute.activation_checkpointing).kind == "auto" else [compute.activation_checkpointing]
    for policy in dict.fromkeys((*POLICIES, *given)):
        chosen = replace(compute, activation_checkpointing=policy)
        again = recomputed_blocks(Policy.parse(policy), cost, compute.most_views)
        kept, share = activation_bytes(cost, again) / 2**20, recomputed_share(cost, again)
        fitting = "".join(f"{largest_views(stage, chosen, world_size, size, cost) or '-':>10}" for size in cards.values())
        yield f"  {policy:<26}{kept:>12.1f} MiB{share:>13.1%}{fitting}"


def planned_cards(config: LoopConfig) -> dict[str, float]:
    """{name: bytes} of the cards to plan for."""
    if config.compute.memory_gib is not None:
        return {f"{config.compute.memory_gib:g} GiB": config.compute.memory_gib * GIB}
    if torch.cuda.is_available():
        size = torch.cuda.get_device_properties(0).total_memory
        return {f"{size / GIB:.1f} GiB": size}
    return CARDS
