"""The optimizers, their parameter groups and the learning rate of a step, as in the official code."""

import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.sgd import sgd

from train.compute.ema import local

NO_DECAY_NAMES = ("mask_token", "pos_embed", "cls_token")


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    layer_decay: float | None = None,
    depth: int | None = None,
) -> list[dict[str, Any]]:
    """Groups with `params`, `weight_decay` and `lr_scale`, ready for an optimizer; the order follows the parameters.

    Not decayed: vectors, names ending in `.bias` or `.scale`, the mask token, position and class tokens. With `layer_decay`
    (fine-tuning; needs `depth`, the number of blocks) the learning rate of layer i is scaled by layer_decay^(depth + 1 - i).
    """
    assert layer_decay is None or depth is not None, "layer-wise decay counts from the last block: give its depth"
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        decay = weight_decay if is_decayed(name, parameter) else 0.0
        scale = 1.0 if layer_decay is None or depth is None else layer_decay ** (depth + 1 - layer_number(name, depth))
        group = groups.setdefault((scale, decay), {"params": [], "weight_decay": decay, "lr_scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Whether weight decay applies. Only the last part of the name counts: wrappers put theirs in front.

    (The official list compares whole names, and so decays the mask token once torch.compile has prefixed it.)
    """
    last = name.rsplit(".", 1)[-1]
    return parameter.ndim > 1 and last not in ("bias", "scale") and last not in NO_DECAY_NAMES


def layer_number(name: str, depth: int) -> int:
    """0 for the patch embedding, b + 1 for block b, depth + 1 for what follows the blocks."""
    if "patch_embed" in name.split("."):
        return 0
    block = re.search(r"(?:^|\.)blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else depth + 1


def build_optimizer(groups: list[dict[str, Any]], betas: tuple[float, float], eps: float = 1e-8) -> torch.optim.AdamW:
    """Fused AdamW over `parameter_groups`, its learning rate 0 until `set_lr`. Betas: (0.9, 0.95) in pre-training."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


class ShardedSGD(torch.optim.SGD):
    """SGD with momentum over groups as `build_optimizer`'s, fused; like fused AdamW it takes `found_inf`, which skips a step on
    the device, and `grad_scale`.

    Torch's own fused step (2.15) takes no DTensor, so this one gives the kernel each rank's shards. And it leaves momentum
    without a value if it is the first step that is skipped; here it begins as zeros, of which the first step makes the same.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, lr=0.0, momentum=momentum)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            sgd(
                [local(parameter) for parameter in parameters],
                [local(parameter.grad) for parameter in parameters],
                [local(self.state[parameter]["momentum_buffer"]) for parameter in parameters],
                foreach=False,
                fused=True,
                grad_scale=self.grad_scale,
                found_inf=self.found_inf,
                dampening=0.0,
                nesterov=False,
                maximize=False,
                **{name: group[name] for name in ("weight_decay", "momentum", "lr")},
            )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the learning rate times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def lr_at(step: int, *, peak: float, final: float, total_steps: int, warmup_steps: int, start: float = 0.0) -> float:
    """Learning rate of `step` (0 .. total_steps - 1): linear warm-up from `start`, then a cosine from `peak` towards `final`.

    The last warm-up step has the peak, and so has the first of the cosine; `final` itself is never quite reached.
    """
    assert 0 <= step < total_steps, f"step {step} of {total_steps}"
    if step < warmup_steps:
        return start + (peak - start) * step / max(warmup_steps - 1, 1)
    cosine_steps = total_steps - warmup_steps
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * (step - warmup_steps) / cosine_steps))
