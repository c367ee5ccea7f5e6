"""What a localizer's training begins with: an earlier run's weights, or those of the public ActionFormer code."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.layouts import unwrapped
from model.localizer import Localizer
from model.localizer_config import LocalizerConfig
from model.localizer_weights import from_actionformer, read_localizer_file
from model.weights import LABELS, Transfer, Weights

LAST = "cls_head.cls_head."  # the classes


@dataclass(frozen=True, slots=True)
class LocalizerWeights(Weights):
    """Those of a localizer."""

    @property
    def name(self) -> str:
        return f"localizer, features {self.tensors['backbone.embd.0.conv.weight'].shape[1]} wide"

    @property
    def what(self) -> str:
        return f"{self.num_classes} classes"

    @property
    def num_classes(self) -> int:
        return len(self.tensors[f"{LAST}conv.bias"])


def read_localizer(place: str | Path) -> LocalizerWeights:
    """A file, a run's folder (its model_ema.safetensors, if it has one), or a checkpoint of the public code. Raises
    ValueError."""
    path = Path(place)
    if path.is_dir() and (path / "config.json").exists():
        files = [path / name for name in ("model_ema.safetensors", "model.safetensors") if (path / name).exists()]
        if not files:
            raise ValueError(f"{place} has no model.safetensors yet: let the run end")
        path = files[0]
    found = read_localizer_file(path)
    tensors = unwrapped(found.tensors)
    ours = "stage" in found.metadata
    labels = json.loads(found.metadata[LABELS]) if LABELS in found.metadata else None
    layout = "tubecell" if ours else "ActionFormer's"
    return LocalizerWeights(str(path), layout, tensors, {}, notes=found.notes, labels=labels, metadata=found.metadata)


def start_of(place: str | None, config: LocalizerConfig, names: Sequence[str], model: Localizer) -> Transfer | None:
    """What a model begins with. Raises ValueError, with the names, if a tensor is missing, has no place, or is of other sizes;
    but the classes begin anew where they are others."""
    if place is None:
        return None
    shapes: dict[str, torch.Size] = {name: parameter.shape for name, parameter in model.named_parameters()}
    try:
        weights = read_localizer(place)
        fresh = [name for name in shapes if name.startswith(LAST)] if other_classes(weights, names) else []
        rest = {name: shape for name, shape in shapes.items() if name not in fresh}
        theirs: Mapping[str, Tensor] = {n: t for n, t in weights.tensors.items() if not (fresh and LAST in n)}
        taken = from_actionformer(theirs, rest)
    except ValueError as error:
        raise ValueError(f"--init: {place}: {error}") from None
    return Transfer(taken, fresh, dict.fromkeys(fresh, "its classes are others"), weights)


def other_classes(weights: LocalizerWeights, names: Sequence[str]) -> bool:
    """By name, where the weights tell them, else by number."""
    if not names:
        return False
    return list(weights.labels) != list(names) if weights.labels else weights.num_classes != len(names)
