"""A probe's run: heads of which the best one, with the encoder that all of them are of, is a classifier.

Its checkpoints hold the heads alone, linear ones as `heads.I.weight` and `heads.I.bias`, attentive ones as `heads.I.pooler.*`
and `heads.I.head.*`; what reads or exports weights (`source.py`) joins them with the encoder of --init.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

EVALUATIONS = "evaluations.jsonl"
BEST_LR, BEST_WEIGHT_DECAY = "best_lr", "best_weight_decay"  # figures


@dataclass(frozen=True, slots=True)
class Head:
    """How one is trained."""

    lr: float
    """Peak, for 256 views."""
    weight_decay: float

    def __str__(self) -> str:
        """As in the names of figures."""
        return f"lr{self.lr:g}_wd{self.weight_decay:g}"


def heads_of(lrs: Sequence[float], weight_decays: Sequence[float], base_lr: float, weight_decay: float) -> list[Head]:
    """Every learning rate with every weight decay, in the order of the model's heads; of none those of `--optim.*`."""
    return [Head(*pair) for pair in product(lrs or (base_lr,), weight_decays or (weight_decay,))]


def are_heads(tensors: Mapping[str, Any]) -> bool:
    """Whether a run's weights are a probe's."""
    return any(name.startswith("heads.0.") for name in tensors)


def best_head(config: Mapping[str, Any], evaluated: Mapping[str, Any] | None) -> tuple[int, str]:
    """Of a run's config.json, flat, and figures of an evaluation -> the place of its best head, and what is to be said of it.
    Without an evaluation it is the first."""
    given = config["lrs"], config["weight_decays"], config["optim.base_lr"], config["optim.weight_decay"]
    heads = heads_of(*given)
    if len(heads) == 1:
        return 0, str(heads[0])
    if evaluated is None:
        return 0, f"{heads[0]}, the first of {len(heads)}: none was evaluated, which --evaluate-every does"
    best = Head(evaluated[BEST_LR], evaluated[BEST_WEIGHT_DECAY])
    return heads.index(best), f"{best}, the best of {len(heads)}"


def last_evaluated(run: Path, step: int | None, prefix: str = "") -> dict[str, Any] | None:
    """The figures whose names begin so, without that, of a run's last evaluation of heads up to a step, by default of all."""
    if not (file := run / EVALUATIONS).exists():
        return None
    lines = [json.loads(line) for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    known = [line for line in lines if prefix + BEST_LR in line and (step is None or line["step"] <= step)]
    return {name.removeprefix(prefix): value for name, value in known[-1].items() if name.startswith(prefix)} if known else None


def joined(heads: Mapping[str, Tensor], encoder: Mapping[str, Tensor], place: int) -> dict[str, Tensor]:
    """The encoder's tensors, as `Weights.encoder` gives them, with one of the heads: a classifier's, as float32. A pooler
    stands in for the mean over the tokens, and so for the norm of that."""
    own = f"heads.{place}."
    head = {name.removeprefix(own): tensor for name, tensor in heads.items() if name.startswith(own)}
    head = {name if "." in name else f"head.{name}": tensor for name, tensor in head.items()}
    left = ("head.", "pooler.", "fc_norm.") if "pooler.query_tokens" in head else ("head.", "pooler.")
    return {name: tensor.float() for name, tensor in encoder.items() if not name.startswith(left)} | head
