"""Initial values, parameter by parameter: a function of the seed and the parameter's official name, and of nothing else.

So they do not depend on the number of ranks, on the order of construction or on the device. What is drawn follows the
official code, including the layers that it leaves at PyTorch's default.
"""

import hashlib
import math

import torch
from torch import Tensor, nn

HEAD_SCALE = 0.001  # the official code's init_scale


def initial_value(
    name: str, shape: tuple[int, ...], seed: int, patch_values: int | None = None, head_scale: float = HEAD_SCALE
) -> Tensor:
    """Official parameter name and full shape -> its initial value, float32 on the CPU.

    Names that begin with `encoder.` or `decoder.` are of the pre-training model, whose linear layers are Xavier uniform (qkv
    as the one matrix it is). The others are of the classifier: truncated normal with deviation 0.02, the head multiplied by
    `head_scale`. In both, norms are 1 and 0 and biases 0. The patch embedding is PyTorch's default, U(±1/sqrt(P)), for whose
    bias `patch_values` = P must be given, since its shape does not tell.
    """
    value = torch.zeros(shape, dtype=torch.float32)
    generator = torch.Generator().manual_seed(parameter_seed(name, seed))
    parts = name.split(".")
    if name == "mask_token":
        # the official wrapper cuts at one deviation, which leaves an effective one of about 0.011
        nn.init.trunc_normal_(value, std=0.02, a=-0.02, b=0.02, generator=generator)
    elif "patch_embed" in parts:
        fan_in = patch_values if parts[-1] == "bias" else math.prod(shape[1:])
        if fan_in is None:
            raise ValueError(f"initial_value: the bias {name!r} is drawn from U(±1/sqrt(P)); pass patch_values = P")
        value.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
    elif parts[-1] in ("bias", "q_bias", "v_bias"):
        pass
    elif "norm" in parts[-2]:
        value.fill_(1)
    elif name == "encoder_to_decoder.weight":  # PyTorch's default: the official code initialises only what is inside the two
        value.uniform_(-1 / math.sqrt(shape[1]), 1 / math.sqrt(shape[1]), generator=generator)
    elif parts[0] in ("encoder", "decoder"):
        nn.init.xavier_uniform_(value, generator=generator)
    else:
        nn.init.trunc_normal_(value, std=0.02, a=-2.0, b=2.0, generator=generator)
        if parts[0] == "head":
            value.mul_(head_scale)
    return value


def parameter_seed(name: str, seed: int) -> int:
    """63 bits from the run's seed and the parameter's name, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@torch.no_grad()
def initialise(model: nn.Module, seed: int, head_scale: float = HEAD_SCALE) -> None:
    """Give every parameter of an unsharded model its initial value."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    patch_values = next(math.prod(s[1:]) for n, s in shapes.items() if n.endswith("patch_embed.proj.weight"))
    for name, parameter in model.named_parameters():
        parameter.copy_(initial_value(name, shapes[name], seed, patch_values, head_scale))
