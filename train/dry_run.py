"""What a run would be, without data, model or GPU."""

import json
from dataclasses import asdict

import torch

from model.flops import executed_gmac, paper_gmac
from model.videomae import VideoMAE
from pipeline.manifest import Manifest
from pipeline.order import order_of
from pipeline.sampling import steps_per_epoch
from train.config import PretrainConfig


def describe(config: PretrainConfig, world_size: int) -> str:
    """The resolved configuration and the figures that follow from it, as text.

    Raises ValueError for what the run itself would refuse: views that cannot be shared, too few clips.
    """
    with torch.device("meta"):
        parameters = sum(p.numel() for p in VideoMAE(config.model).parameters())
    sampling = config.sampling
    tokens, views = sampling.tokens, config.views.views_per_step
    manifest = Manifest(config.data) if config.data else None
    clips = len(manifest) if manifest else config.expected_clips
    epoch = order_of(manifest, sampling).steps_per_epoch if manifest else steps_per_epoch(clips, sampling)
    steps = config.total_steps(epoch)
    executed = executed_gmac(config.model, tokens.visible, tokens.decoded)
    source = f"of {config.data}" if config.data else "expected; --data DATASET counts them"
    lines = {
        "clips": f"{clips:,} ({source})",
        "parameters": f"{parameters:,}",
        "tokens of a view": f"{tokens.visible} visible + {tokens.decoded} decoded, {tokens.loss} in the loss, "
        f"of {config.model.num_tokens}",
        "forward": f"{paper_gmac(config.model, tokens.visible, tokens.decoded):.2f} GMAC a view as the paper counts, "
        f"{executed:.2f} executed; {6 * executed / 1e3:.3g} TFLOP a view in training",
        "steps": f"{steps:,} ({epoch:,} an epoch, {steps / epoch:g} epochs; warm-up {config.warmup_steps(steps):,})",
        "learning rate": f"peak {config.peak_lr:.2e}, end {config.final_lr:.2e} "
        f"({config.optim.base_lr:g} and {config.optim.base_min_lr:g} for 256 views)",
        "batch": f"{views:,} views = {sampling.clips_per_step:,} clips x {config.views.views_per_clip}",
        "whole run": f"{steps * views:,} views, {6e9 * executed * steps * views / 1e21:.3g} ZFLOP",
    }
    for ranks in dict.fromkeys((world_size, 8, 64)):
        try:
            passes = config.accumulation(ranks)
            share = views // ranks
            lines[f"on {ranks} rank{'s' if ranks > 1 else ''}"] = (
                f"{share:,} views a rank and step in {passes} forward pass{'es' if passes > 1 else ''} of {share // passes}"
            )
        except ValueError:
            if ranks == world_size:
                raise
    width = max(map(len, lines))
    figures = "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
    return f"{json.dumps(asdict(config), indent=1, default=str)}\n\n{figures}"
