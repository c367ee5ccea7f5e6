"""Names of others -> official names, and back.

Hugging Face's VideoMAE has queries, keys and values apart, and up to three kinds of names for their biases; timm's ViT has one
bias for the three. A key's bias has no effect, since softmax cancels it, so none is kept.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

HF_LEAVES = {
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
HF_OTHERS = {
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
HF_ATTENTION = "attention.attention."
BIASES = {"q": ("q_bias", "query.bias"), "v": ("v_bias", "value.bias")}
TIMM_NAME = re.compile(r"(patch_embed\.proj|blocks\.\d+\.(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])|norm|fc_norm|head)\.\w+")
KEY_BIAS = "a key's bias has no effect: softmax cancels it"
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # of a compiled or wrapped model
OWNERS = ("model.", "backbone.", "videomae.")  # what a model is part of


@dataclass(slots=True)
class Mapped:
    """Tensors under official names."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    """Names of what was not taken, and why."""
    differs: list[str] = field(default_factory=list)
    """Why the official network with these tensors would not compute what the file's does."""
    absent: tuple[str, ...] = ()
    """Beginnings of names that the official network has, and the file's has not."""


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, wherever they stand. Raises ValueError if two names become one."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name
        for wrapper in WRAPPERS:
            bare = re.sub(rf"(^|\.){re.escape(wrapper)}", r"\1", bare)
        if bare in found:
            raise ValueError(f"{name} and another tensor are both {bare} once {', '.join(WRAPPERS)} are taken off")
        found[bare] = tensor
    return found


def without_owner(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Of a model that is part of another: its tensors, without that prefix, and why the others are left."""
    for owner in OWNERS:
        if any(name.startswith((f"{owner}patch_embed.", f"{owner}encoder.patch_embed.")) for name in tensors):
            inside = {name.removeprefix(owner): t for name, t in tensors.items() if name.startswith(owner)}
            left = {name: f"is not of {owner}*" for name in tensors if not name.startswith(owner)}
            return inside, left
    return dict(tensors), {}


def is_hf(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in tensors)


def from_hf(tensors: Mapping[str, Tensor], with_biases: bool) -> Mapped:
    """Of transformers' VideoMAEModel, VideoMAEForPreTraining or VideoMAEForVideoClassification.

    A pre-trained encoder, whose tokens have a norm of their own, is named `encoder.*`, as in official files, and that of a
    classifier not. `with_biases`: the configuration says that queries and values have some. Raises ValueError if the tensors
    contradict it: transformers 5.10 dropped them in silence.
    """
    found = Mapped()
    bare = {name.removeprefix("videomae."): tensor for name, tensor in tensors.items()}
    trunk = "encoder." if "layernorm.weight" in bare or "mask_token" in bare else ""
    blocks = {"encoder.layer": f"{trunk}blocks", "decoder.decoder_layers": "decoder.blocks"}
    leaves = {theirs: ours for ours, theirs in HF_LEAVES.items()}
    attention: dict[str, dict[str, Tensor]] = {}
    for name, tensor in bare.items():
        owner, leaf = name.rpartition(".")[::2]
        if match := re.fullmatch(r"(encoder\.layer|decoder\.decoder_layers)\.(\d+)\.(.+)\.(weight|bias|[qkv]_bias)", name):
            stack, number, part, leaf = match.groups()
            block = f"{blocks[stack]}.{number}"
            if part.startswith(HF_ATTENTION.rstrip(".")):
                attention.setdefault(block, {})[name.partition(HF_ATTENTION)[2]] = tensor
            elif part in leaves:
                found.tensors[f"{block}.{leaves[part]}.{leaf}"] = tensor
            else:
                found.left[name] = "is no part of a VideoMAE block"
        elif owner in HF_OTHERS.values():
            ours = next(ours for ours, theirs in HF_OTHERS.items() if theirs == owner)
            found.tensors[f"{trunk}{ours}.{leaf}"] = tensor
        elif owner == "classifier":
            found.tensors[f"head.{leaf}"] = tensor
        elif owner in ("fc_norm", "decoder.norm", "decoder.head", "encoder_to_decoder") or name == "mask_token":
            found.tensors[name] = tensor
        else:
            found.left[name] = "has a name that VideoMAE does not have"
    for block, parts in attention.items():
        _join_attention(found, block, parts, with_biases)
    if trunk and "head.weight" in found.tensors:
        found.differs.append("it classifies by its first token, not by the mean (use_mean_pooling is false)")
        _drop_head(found)
    if "mask_token" in bare and "layernorm.weight" not in bare:
        found.differs.append("its encoder has no last norm (use_mean_pooling is true)")
        found.absent = ("encoder.norm.",)
    return found


def _join_attention(found: Mapped, block: str, parts: dict[str, Tensor], with_biases: bool) -> None:
    weights = [parts.pop(f"{name}.weight", None) for name in ("query", "key", "value")]
    if not all(isinstance(weight, Tensor) for weight in weights):
        raise ValueError(f"{block} lacks a weight of its queries, keys or values")
    joined = torch.cat([weight for weight in weights if weight is not None])
    found.tensors[f"{block}.attn.qkv.weight"] = joined
    for letter, names in BIASES.items():
        bias = next((parts.pop(name) for name in names if name in parts), None)
        if bias is None and with_biases:
            raise ValueError(
                f"{block} has no {' or '.join(names)}, but the configuration says that there are biases (qkv_bias, qv_bias): "
                "another program lost them; take the folder as it was published"
            )
        zeros = torch.zeros(joined.shape[1], dtype=joined.dtype)
        found.tensors[f"{block}.attn.{letter}_bias"] = zeros if bias is None else bias
    for name in parts:
        found.left[f"{block}: {name}"] = KEY_BIAS if name in ("key.bias", "k_bias") else "is no part of attention"


def to_hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Official names -> those that transformers 5.23 writes: of VideoMAEForPreTraining if there is a decoder, of
    VideoMAEForVideoClassification if there is a head, else of VideoMAEModel."""
    owner = "videomae." if {"mask_token", "head.weight"} & tensors.keys() else ""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(encoder\.|decoder\.|)blocks\.(\d+)\.(.+)\.(\w+)", name)
        if match:
            stack, number, part, leaf = match.groups()
            block = f"decoder.decoder_layers.{number}." if stack == "decoder." else f"{owner}encoder.layer.{number}."
            if part == "attn.qkv":
                for letter, weight in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    found[f"{block}{HF_ATTENTION}{letter}.{leaf}"] = weight
            elif part == "attn":
                found[f"{block}{HF_ATTENTION}{leaf}"] = tensor
            else:
                found[f"{block}{HF_LEAVES[part]}.{leaf}"] = tensor
            continue
        bare, leaf = name.removeprefix("encoder.").rpartition(".")[::2]
        if bare in HF_OTHERS:
            found[f"{owner}{HF_OTHERS[bare]}.{leaf}"] = tensor
        else:
            found[f"classifier.{leaf}" if bare == "head" else name] = tensor
    return found


def is_timm(tensors: Mapping[str, Tensor]) -> bool:
    return "blocks.0.attn.qkv.bias" in tensors or (
        "patch_embed.proj.weight" in tensors and tensors["patch_embed.proj.weight"].dim() == 4
    )


def from_timm(tensors: Mapping[str, Tensor], positions: Tensor | None, tubelet_size: int = 2) -> Mapped:
    """Of timm's VisionTransformer. `positions` (N, D) is the table that the official network would have.

    The patch embedding of images (D, 3, p, p) is divided among the frames of a tubelet: a still video gives what the image
    gave. Raises ValueError for what has no place at all in the official network.
    """
    found = Mapped()
    for name, tensor in tensors.items():
        if name.endswith("attn.qkv.bias"):
            query, key, value = tensor.chunk(3)
            block = name.removesuffix("qkv.bias")
            found.tensors[f"{block}q_bias"], found.tensors[f"{block}v_bias"] = query, value
            if key.any():
                found.left[f"{name}, keys"] = KEY_BIAS
        elif re.search(r"\.(ls[12]\.gamma|attn\.[qk]_norm\.\w+|attn\.norm\.\w+|mlp\.fc1_g\.\w+|gamma_[12])$", name):
            raise ValueError(f"{name}: LayerScale, norms inside of attention and gated MLPs have no place in the network")
        elif name == "patch_embed.proj.weight" and tensor.dim() == 4:
            found.tensors[name] = tensor[:, :, None].expand(-1, -1, tubelet_size, -1, -1) / tubelet_size
            found.differs.append(f"its patches are of images: the embedding was divided among {tubelet_size} frames")
        elif name == "pos_embed":
            table = tensor.squeeze(0).float()
            if positions is None or positions.shape != table.shape or not torch.allclose(positions, table, atol=1e-4):
                found.left[name] = "positions are fixed sinusoids here"
                found.differs.append("its positions are others")
        elif name in ("cls_token", "reg_token", "dist_token"):
            found.left[name] = "there is none here"
            found.differs.append(f"it has a {name}")
        elif name.startswith(("norm_pre.", "head_dist.", "pre_logits.", "attn_pool.")):
            found.left[name] = "has no place in the official network"
            found.differs.append(f"it has a {name.partition('.')[0]}")
        elif TIMM_NAME.fullmatch(name):
            found.tensors[name] = tensor
        else:
            found.left[name] = "has a name that timm's ViT does not have"
    if "norm.weight" in found.tensors and "head.weight" in found.tensors:
        found.differs.append("its last norm comes before its tokens are pooled, not after")
        _drop_head(found)
    return found


def _drop_head(found: Mapped) -> None:
    for name in [name for name in found.tensors if name.startswith("head.")]:
        found.left[name] = "is a head on other features"
        del found.tensors[name]


def to_timm(tensors: Mapping[str, Tensor], positions: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Official names -> those of timm's VisionTransformer with a tubelet embedding (see `train/convert.py`), and why the others
    are left."""
    found, left = {"pos_embed": positions[None]}, {}
    for name, tensor in tensors.items():
        bare = name.removeprefix("encoder.")
        if bare.startswith(("patch_embed.", "blocks.", "norm.", "fc_norm.", "head.")) and not name.startswith("decoder."):
            if bare.endswith("attn.q_bias"):
                value = tensors[name.removesuffix("q_bias") + "v_bias"]
                found[bare.removesuffix("q_bias") + "qkv.bias"] = torch.cat([tensor, torch.zeros_like(tensor), value])
            elif not bare.endswith("attn.v_bias"):
                found[bare] = tensor
        else:
            left[name] = "timm's ViT has no decoder"
    return found, left
