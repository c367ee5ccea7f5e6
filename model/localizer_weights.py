"""A localizer's weights in files: ours, and those of the public ActionFormer code, whose names are the same.

Shapes there have dimensions of size 1 that ours have not: norms and branch scales are (1, C, 1), products (out, in, 1), and a
level's scale has none, which FSDP2 does not shard.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from model.layouts import unwrapped
from model.localizer import Localizer, shapes_of
from model.localizer_config import LocalizerConfig
from model.weight_files import WeightFile, read_weight_file

MEAN = "state_dict_ema"  # of the public code's checkpoints: what its evaluation takes
NO_WEIGHT = re.compile(r"(.*\.)?(pos_embd|point_generator\..*|rel_pe)")  # buffers of older versions of the public code
OWN = "backbone.embd.0.conv.weight"


def is_localizer(tensors: Mapping[str, Tensor]) -> bool:
    """By official names."""
    return OWN in tensors and "reg_head.offset_head.conv.weight" in tensors


def from_actionformer(tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Public names and shapes, or ours -> ours, those of a model. Raises ValueError that names what is missing, what has no
    place, and what is of other sizes."""
    bare = {name: tensor for name, tensor in unwrapped(tensors).items() if not NO_WEIGHT.fullmatch(name)}
    faults = [f"{name} is missing" for name in shapes if name not in bare]
    faults += [f"{name} has no place" for name in bare if name not in shapes]
    taken = {}
    for name, shape in shapes.items():
        if name in bare and [size for size in bare[name].shape if size != 1] != [size for size in shape if size != 1]:
            faults.append(f"{name} is {tuple(bare[name].shape)}, not {tuple(shape)}")
        elif name in bare:
            taken[name] = bare[name].reshape(shape)
    if faults:
        raise ValueError(f"{'; '.join(faults[:5])}{f'; and {len(faults) - 5} others' if len(faults) > 5 else ''}")
    return taken


def as_actionformer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ours -> what the public code's `load_state_dict` takes."""
    found = {}
    for name, tensor in tensors.items():
        owner, leaf = name.split(".")[-2:]
        if name.startswith("reg_head.scale."):
            found[name] = tensor.reshape(())
        elif tensor.ndim == 2:
            found[name] = tensor[..., None]
        elif tensor.ndim == 1 and (leaf == "scale" or "norm" in name or owner.startswith("ln")):
            found[name] = tensor[None, :, None]
        else:
            found[name] = tensor
    return found


def read_localizer_file(place: str | Path) -> WeightFile:
    """A file, ours or one of the public code's, of which the running mean is taken if it has one. Raises ValueError for what
    cannot be read, and for other networks."""
    try:
        found = read_weight_file(place, MEAN)
    except ValueError:
        found = read_weight_file(place)
    if not is_localizer(unwrapped(found.tensors)):
        raise ValueError(f"{place} is no localizer's: it has no {OWN}; give a run of `localize`, or ActionFormer's checkpoint")
    return found


def built(config: LocalizerConfig, num_classes: int, tensors: Mapping[str, Tensor]) -> Localizer:
    """The network with these weights, in float32, on the CPU, in evaluation mode. Raises ValueError as `from_actionformer`."""
    taken = from_actionformer(tensors, shapes_of(config, num_classes))
    with torch.device("meta"):
        model = Localizer(config, num_classes)
    model.to_empty(device="cpu")
    model.load_state_dict({name: tensor.float() for name, tensor in taken.items()})
    model.reset_buffers()
    return model.eval()
