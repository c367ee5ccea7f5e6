"""A training as this machine can measure it: its step, and whether its model is run at all."""

from collections.abc import Collection
from dataclasses import replace

import torch

from model.flops import executed_gmac
from pipeline.machine import usable_cores
from pipeline.storage.manifest import Manifest
from train.stages.pretraining import PretrainConfig

FEW_VIEWS = 8  # of a forward pass on a CPU, where 128 of ViT-B take minutes
SLOWEST_STEP = 5.0  # seconds, above which a model is not run on a CPU
CPU_FLOPS = 2e10  # of a core, at most, for guessing that


def on_gpu(device: str | None) -> bool:
    return device != "cpu" and torch.cuda.is_available()


def measurable(config: PretrainConfig, recipe: str, given: Collection[str], clips: int | None) -> PretrainConfig:
    """With a step of one forward pass, which is what one GPU of many does, and which so many `clips` suffice for. On a CPU that
    is of few views, but for `tiny`, and in fp32: most CPUs have no bf16 instructions. What `given` names, such as
    "views.views_per_step", stays. Raises ValueError for what cannot be."""
    views, compute = config.views, config.compute
    if not on_gpu(compute.device) and recipe != "tiny":
        few = min(compute.most_views, max(views.views_per_clip, FEW_VIEWS))
        changes = {"precision": "fp32", "views_per_forward": few}
        compute = replace(compute, **{name: value for name, value in changes.items() if f"compute.{name}" not in given})  # type: ignore[arg-type]
    most = views.views_per_step if clips is None else clips * views.views_per_clip
    if "views.views_per_step" not in given:
        whole = compute.most_views // views.views_per_clip * views.views_per_clip
        views = replace(views, views_per_step=max(views.views_per_clip, min(whole, views.views_per_step, most)))
    if views.views_per_step > most:
        remedy = f"give --views.views-per-step {most} or less" if clips else "build a dataset with more clips"
        raise ValueError(
            f"{Manifest(config.data or '').place} has {clips} clips, and a step of {views.views_per_step} views takes "
            f"{views.views_per_step // views.views_per_clip}; {remedy}"
        )
    config = replace(config, views=views, compute=compute)
    config.accumulation(1)
    return config


def no_model(config: PretrainConfig) -> str | None:
    """Why the model is not run: it would take minutes."""
    if on_gpu(config.compute.device):
        return None
    tokens = config.sampling.tokens
    flops = 6e9 * executed_gmac(config.model, tokens.visible, tokens.decoded, tokens.loss) * config.views.views_per_step
    seconds = flops / (CPU_FLOPS * usable_cores())
    if seconds < SLOWEST_STEP:
        return None
    return f"a step of this model takes about {seconds:.0f} s on these cores; run on a GPU, or with the recipe tiny"
