"""What a text model makes of a few words: whether it can be a tower, what it pools, and how wide that is."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from model.two_towers import Pooling, TextTower

Asked = Literal["auto", Pooling]
WORDS = 24  # of the vocabulary, at equal distances
ALIKE = 1e-6  # of the largest value: features that differ by less are the same


def texts_to_try(tokenizer: Any, length: int) -> list[str]:
    """Texts that begin alike, the first as long as can be."""
    numbers = np.linspace(0, len(tokenizer) - 1, min(WORDS, len(tokenizer))).round().astype(int).tolist()
    words = [tokenizer.decode([number], skip_special_tokens=True).strip() for number in numbers]
    known = [word for word in words if word and word.isprintable()] or ["a"]
    return [" ".join([known[0]] * length), *(f"{known[0]} {word}" for word in known)]


def tried(model: nn.Module, ids_BL: np.ndarray, there_BL: np.ndarray, asked: Asked) -> tuple[Pooling, int]:
    """Tokens of such texts, and which of them count, int64 (B, L) each -> what to pool, and the width of a feature. "auto" is
    what the model itself pools, where nothing but this was trained for it (CLIP), and else the mean: BERT's pooler was trained
    for another question. A pooler that is not used is taken off.

    Raises ValueError for a model that cannot take so many tokens, that pools nothing where it should, or whose feature says
    nothing of a text.
    """
    pooling: Pooling = "mean" if asked == "auto" else asked
    with torch.no_grad():
        ids, there = torch.from_numpy(ids_BL), torch.from_numpy(there_BL)
        if asked == "auto" and getattr(model, "pooler", None) is None and "pooler_output" in made(model, ids, there):
            pooling = "pooled"
        if pooling != "pooled" and hasattr(model, "pooler"):
            model.pooler = None  # type: ignore[assignment]  # nothing would train it
        if "pooler_output" not in made(model, ids, there) and pooling == "pooled":
            raise ValueError('--pooling pooled: it pools nothing; take "mean" or "first"')
        feature_BD: Tensor = TextTower(model, pooling, {})(ids, there)
    if not bool(torch.isfinite(feature_BD).all()):
        raise ValueError("its features are not finite")
    spread, most = float((feature_BD - feature_BD[:1]).abs().max()), float(feature_BD.abs().max())
    if len(np.unique(ids_BL, axis=0)) > 1 and spread <= ALIKE * most:
        why = {
            "pooled": "its tokenizer ends no text with the token that it pools at",
            "first": "its tokens see only what stands before them",
            "mean": "it tells no words apart",
        }[pooling]
        raise ValueError(f"--pooling {pooling}: texts that begin alike have one feature, whatever follows ({why})")
    return pooling, feature_BD.shape[1]


def made(model: nn.Module, ids: Tensor, there: Tensor) -> Mapping[str, Tensor]:
    """What the model gives, by name. Raises ValueError where it cannot."""
    try:
        found = model(input_ids=ids, attention_mask=there)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"its model fails on texts of {ids.shape[1]} tokens ({first_line(error)}); perhaps a lower --words"
        ) from None
    return {name: value for name, value in found.items() if value is not None}


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
