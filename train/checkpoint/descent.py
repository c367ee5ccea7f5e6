"""What weights descend from: RUN/descent.json, which goes with every checkpoint and into the metadata of what is exported.

[{"place": "pretrained", "model": "ViT-B, encoder and decoder", "layout": "tubecell", "stage": "pretrain", "step": "9000",
  "recipe": "vit-b-hybrid", "tubecell": "0.1", "fingerprint": "0a4c..."},       what the run began with
 {"place": "videomae.pth", "model": ..., "fingerprint": ...}]                   what that descends from, and so on
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import ModelConfig
from model.weights import DESCENT, Transfer, Weights

FILE = "descent.json"
POSITIONS = {"size": "input_size", "frames": "num_frames"}  # of the views that a position table is for
Descent = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a run began with."""

    lines: Sequence[str]
    """For people: the weights, what was taken of them, and what was not."""
    descent: Descent

    @staticmethod
    def of(start: Transfer, config: object) -> "Beginning":
        """`config` are the model's sizes, of which those of a video ViT say more than its tensors' shapes."""
        whole = str(start.weights).splitlines()
        differ = differences(start, config) if isinstance(config, ModelConfig) else []
        lines = [f"begins with {whole[0]}", *whole[1:], *(f"  {said}" for said in differ), *start.lines()]
        return Beginning(lines, descent_of(start.weights))


def differences(start: Transfer, config: ModelConfig) -> list[str]:
    """What no tensor's shape tells, and the model has otherwise than its weights had it: a line each, with the flag."""
    theirs, ours = dict(start.weights.sizes), asdict(config)
    theirs.setdefault("layer_norm_eps", ModelConfig().layer_norm_eps)
    theirs["last_norm_eps"] = theirs.get("last_norm_eps") or theirs["layer_norm_eps"]
    names = ["encoder_heads", "layer_norm_eps"]
    names += ["decoder_heads"] if any(name.startswith("decoder.") for name in start.taken) else []
    names += ["last_norm_eps"] if any(name.startswith(("decoder.norm.", "fc_norm.")) for name in start.taken) else []
    found = []
    for name in names:
        its, here = theirs[name], config.final_eps if name == "last_norm_eps" else ours[name]
        if its is not None and its != here:
            found.append(f"differs: {name} is {here} here, the weights' {its}: --model.{name.replace('_', '-')} {its}")
    views = [[sizes.get(f"positions_{what}") or sizes[own] for what, own in POSITIONS.items()] for sizes in (theirs, ours)]
    if views[0] != views[1]:
        (size, frames), (here, frames_here) = views
        found.append(
            f"differs: positions are those of {frames_here} frames of {here} x {here} pixels here, the weights' of {frames} of "
            f"{size} x {size}: --model.positions-frames {frames} --model.positions-size {size} interpolates theirs"
        )
    return found


def fingerprint(weights: Mapping[str, Tensor]) -> str:
    """Of names and values; ViT-g's 4 GB take four seconds."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encoder_sizes(weights: Weights) -> dict[str, Any]:
    """What decides an encoder's features besides its tensors, plain values."""
    return {name: value for name, value in weights.sizes.items() if not name.startswith("decoder")}


def descent_of(weights: Weights) -> Descent:
    """Of what begins with these weights: they themselves, and what they descend from."""
    begun = {"place": weights.place, "model": f"{weights.name}, {weights.what}", "layout": weights.layout}
    facts = {name: value for name, value in weights.metadata.items() if name != DESCENT and name not in begun}
    return [begun | facts | {"fingerprint": fingerprint(weights.tensors)}, *read_descent(weights.metadata.get(DESCENT))]


def read_descent(text: str | None) -> Descent:
    """What a descent.json says, or a file's metadata; nothing of what nobody can read."""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return []
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def in_words(ancestor: Mapping[str, Any]) -> str:
    """A line: `videomae.pth`: ViT-B, encoder and decoder; official names; fingerprint 0a4c..."""
    facts = [str(ancestor.get("model", "")), str(ancestor.get("layout", ""))]
    facts += [f"{name} {ancestor[name]}" for name in ("stage", "recipe", "step", "tubecell", "fingerprint") if name in ancestor]
    return f"`{ancestor.get('place', '?')}`: {'; '.join(fact for fact in facts if fact)}"
