"""What to do when the device's memory is full: by how much each knob lowers what a step needs, as `compute/memory.py` has it.

Only a GPU's memory can be spoken of after it was full. Linux hands out more of the machine's than there is, and then kills a
process (exit status -9, or 137 from a shell), which nobody can catch; that it refuses an allocation, as in a container with a
limit on addresses, is the exception.
"""

import math
from dataclasses import asdict, replace

import torch

from pipeline.decoding.decoder_choice import DALI_RATES
from train.compute.activation_checkpointing import recomputed_blocks
from train.compute.device_speed import device_name
from train.compute.memory import (
    BATCHES,
    DALI_BATCHES,
    GIB,
    HEADROOM,
    Cost,
    Costed,
    StepMemory,
    cost_of,
    recomputed_share,
    step_memory,
)
from train.compute.parallel import Ranks, shard_size
from train.compute.precision import PRECISIONS
from train.config import CHECKPOINTING, ComputeConfig, LoopConfig, Policy, RunConfig


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch could not allocate: on a GPU, or, with an error of its own, on a CPU."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def predict(
    stage: Costed,
    compute: ComputeConfig,
    world_size: int,
    local_world_size: int,
    views: int | None = None,
    cost: Cost | None = None,
) -> tuple[StepMemory, float]:
    """Memory of a step computed so, and its FLOPs by those without any computed again; by default with as many `views` in a
    forward pass as the run has. Whoever asks often gives the stage's `cost`, for which it may build its model. Raises
    ValueError if `--compute.shard` does not divide the ranks, or a budget of activations cannot be kept."""
    config, cost = replace(stage.config, compute=compute), cost or cost_of(stage, compute)
    policy = Policy.parse(compute.activation_checkpointing)
    again = recomputed_blocks(policy, cost, views or compute.most_views)
    memory = step_memory(
        cost,
        again,
        views=views or config.views.views_per_step // world_size // config.accumulation(world_size),
        shard=shard_size(compute.shard, world_size, local_world_size),
        reshard=compute.reshard_after_forward,
        defer=compute.defer_gradients,
        mean=config.ema is not None,
        moments=1 if config.optim.optimizer == "sgd" else 2,
        batches=DALI_BATCHES if isinstance(config, RunConfig) and may_take_dali(config.loader.decoder) else BATCHES,
    )
    return memory, 1 + recomputed_share(cost, again)


def may_take_dali(decoder: str) -> bool:
    """Whether batches may be decoded on the device. (Which decoder "auto" takes is known only once the dataset is; without a
    card that DALI was measured on it is libav.)"""
    return decoder == "dali" or (decoder == "auto" and bool(DALI_RATES))


def knobs(config: LoopConfig, world_size: int, local_world_size: int) -> list[tuple[str, ComputeConfig]]:
    """Every flag that could lower the memory of this configuration, with what it makes of it. All leave the batch as it is."""
    compute, found = config.compute, []
    share = config.views.views_per_step // world_size // config.accumulation(world_size)
    clip = config.views.views_per_clip
    if share > clip:
        half = max(share // 2 // clip, 1) * clip
        found.append((f"--compute.views-per-forward {half}", replace(compute, views_per_forward=half)))
    for policy in ("every:2", "full"):
        flag = f"{CHECKPOINTING} {policy}"
        found.append((flag, replace(compute, activation_checkpointing=policy)))
    if not compute.reshard_after_forward:
        found.append(("--compute.reshard-after-forward", replace(compute, reshard_after_forward=True)))
    if compute.defer_gradients:
        found.append(("--compute.no-defer-gradients", replace(compute, defer_gradients=False)))
    if shard_size(compute.shard, world_size, local_world_size) < world_size:
        found.append((f"--compute.shard {world_size}", replace(compute, shard=world_size)))
    if PRECISIONS[compute.precision].encoder == torch.float32:
        found.append(("--compute.precision bf16", replace(compute, precision="bf16")))
    return found


def advice(stage: Costed, ranks: Ranks) -> str:
    """The prediction for this run, which is planned, and for every knob by itself, those that save most first."""
    config = stage.config
    now, flops = predict(stage, config.compute, ranks.world_size, ranks.local_world_size)
    told = ", ".join(f"{name} {size / GIB:.1f}" for name, size in asdict(now).items())
    lines = [f"A step of this configuration should need {now.total / GIB:.1f} GiB ({told})."]
    if ranks.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(ranks.device)
        ours = torch.cuda.memory_reserved(ranks.device)
        others = (total - free - ours) / GIB
        lines[0] += (
            f" This {device_name(ranks.device)} has {total / GIB:.1f} GiB, of which torch had at most "
            f"{torch.cuda.max_memory_allocated(ranks.device) / GIB:.1f}, and CUDA and other programs now have {others:.1f}."
        )
        if now.total < (1 - HEADROOM) * total:
            lines.append(
                "That should fit: look for other programs on it (nvidia-smi), and try PYTORCH_CUDA_ALLOC_CONF="
                "expandable_segments:True, which loses less between tensors, or --compute.memory-gib "
                f"{math.floor(0.85 * total / GIB)}, with which the run is planned for less."
            )
    saved = []
    for flag, compute in knobs(config, ranks.world_size, ranks.local_world_size):
        then, more = predict(stage, compute, ranks.world_size, ranks.local_world_size)
        if then.total < now.total:
            cost = f", {more / flops - 1:.0%} more FLOPs" if more > flops else ""
            saved.append((now.total - then.total, f"  {flag:<44} saves {(now.total - then.total) / GIB:.1f} GiB{cost}"))
    if saved:
        planned = (
            f"--compute.views-per-forward {config.compute.most_views} {CHECKPOINTING} {config.compute.activation_checkpointing}"
        )
        lines.append(f"Each of these alone, after {planned},\nnone of which changes what is learned beyond rounding:")
        lines += [line for _, line in sorted(saved, reverse=True)]
    lines.append("The same command with them goes on from the last checkpoint.")
    return "\n".join(lines)
