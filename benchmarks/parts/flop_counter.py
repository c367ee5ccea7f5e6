"""Torch's counter of FLOPs, which before torch 2.15 leaves out attention on a CPU."""

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """By the shapes."""
    return int(sdpa_flop_count(query, key, value))


def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
}


def flop_counter() -> FlopCounterMode:
    """`with flop_counter() as counter: ...`, then `counter.get_total_flops()`."""
    return FlopCounterMode(display=False, custom_mapping=ON_CPU)
