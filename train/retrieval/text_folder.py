"""A text tower of others: a local folder with a tokenizer and a model of transformers."""

import copy
import importlib.util
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.two_towers import Pooling, TextTower
from train.compute.memory import BlockShape


class TextFolder:
    """What lies in it. It is read when it is first asked for, by every rank."""

    def __init__(self, place: str, pooling: Pooling, words: int) -> None:
        """`words` are the tokens of a text, longer ones are cut. Raises ValueError for what is no such folder, and without
        transformers, with what to install."""
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("--text: transformers is not installed; run `pip install 'tubecell[peers]'`")
        if not (Path(place) / "config.json").is_file():
            raise ValueError(
                f"--text {place} must be a local folder with config.json, model.safetensors and a tokenizer's files"
            )
        self.place, self._pooling, self._words = place, pooling, words

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.place, local_files_only=True)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"--text {self.place} has no tokenizer that can be read: {first_line(error)}") from None
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ValueError(f"--text {self.place}: its tokenizer has neither a token to fill up with nor one for the end")
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @cached_property
    def _model(self) -> nn.Module:
        """Whole, float32, on the CPU."""
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            with torch.device("cpu"):
                config = AutoConfig.from_pretrained(self.place, local_files_only=True)
                config = getattr(config, "text_config", config)  # of a model of pictures and texts its text tower
                if getattr(config, "is_encoder_decoder", False):
                    raise ValueError(f"it is an encoder and a decoder ({config.model_type})")
                model, told = AutoModel.from_pretrained(
                    self.place, config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
                )
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ValueError(f"--text {self.place} has no text tower that can be read: {first_line(error)}") from None
        if self._pooling != "pooled" and hasattr(model, "pooler"):
            model.pooler = None  # nothing would train it
        there = {name for name, _ in model.named_parameters()}
        if lacking := sorted(there & {*told["missing_keys"]}):
            raise ValueError(f"--text {self.place}: its weights lack {', '.join(lacking[:3])}")
        if not (set(model.config.to_dict()) & {"hidden_size", "dim", "n_embd"}):
            raise ValueError(f"--text {self.place}: its config.json does not tell the width of a token (hidden_size)")
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and self._words > limit:
            raise ValueError(f"--words {self._words}: the text tower takes {limit} tokens at most")
        return model

    @property
    def width(self) -> int:
        """Of a feature."""
        config = self._model.config
        return int(next(getattr(config, name) for name in ("hidden_size", "dim", "n_embd") if hasattr(config, name)))

    def tower(self) -> TextTower:
        """As it is on the device that is set by default, meta; `values` are its weights."""
        with torch.device("cpu"):
            buffers = {name: buffer.clone() for name, buffer in self._model.named_buffers()}
            return TextTower(copy.deepcopy(self._model).to("meta"), self._pooling, buffers)

    @cached_property
    def values(self) -> Mapping[str, Tensor]:
        """Of the parameters, float32, on the CPU, by their names in the tower."""
        return {f"tower.{name}": parameter.detach() for name, parameter in self._model.named_parameters()}

    def block(self, dtype: torch.dtype, trained: bool) -> tuple[BlockShape, int]:
        """A block on one text, and their number, to reckon with; of an architecture that tells them by other names, none."""
        config, L = self._model.config, self._words
        found = [getattr(config, name, None) for name in ("num_hidden_layers", "intermediate_size", "num_attention_heads")]
        depth, mlp_dim, heads = (int(each) if isinstance(each, int) else 0 for each in found)
        return BlockShape(L, L, self.width, mlp_dim, heads, dtype, trained), depth

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """B texts -> their tokens and which of them count, int64 (B, words) each."""
        told = self._tokenizer(list(texts), padding="max_length", truncation=True, max_length=self._words, return_tensors="np")
        return told["input_ids"].astype(np.int64), told["attention_mask"].astype(np.int64)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
