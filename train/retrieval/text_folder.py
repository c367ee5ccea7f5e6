"""A text tower of others: a local folder with a tokenizer and a model of transformers; and what a run keeps of it.

RUN/text_tower/              what evaluating needs besides the run's weights, so that the folder itself may move or go
  tokenizer.json, config.json …  as `save_pretrained` writes them; of a model of pictures and texts the text tower's alone
  buffers.safetensors        what the model holds besides its parameters, such as places of tokens
  tower.json                 {"pooling": "mean", "width": 768, "from": the folder}
"""

import copy
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.two_towers import TextTower
from train.checkpoint.files import latest
from train.compute.memory import BlockShape
from train.retrieval.text_trial import Asked, first_line, texts_to_try, tried

KEPT, BUFFERS, FACTS = "text_tower", "buffers.safetensors", "tower.json"
WRONG = "has no text tower that can be read"


class TextFolder:
    """What lies in it, or in a run's `KEPT`, which has no weights. It is read when it is first asked for, by every rank."""

    def __init__(self, place: str | Path, pooling: Asked, words: int) -> None:
        """`words` are the tokens of a text, longer ones are cut. "auto" is what the model itself pools where nothing but this
        was trained for it, as CLIP's, and else the mean. Raises ValueError for what is no such folder, and without
        transformers, with what to install."""
        if importlib.util.find_spec("transformers") is None:
            raise ValueError("--text: transformers is not installed; run `pip install 'tubecell[peers]'`")
        self.place, self._pooling, self._words = Path(place), pooling, words
        if not (self.place / "config.json").is_file():
            raise ValueError(
                f"--text {place} must be a local folder with config.json, model.safetensors and a tokenizer's files"
            )
        self.is_kept = (self.place / FACTS).is_file()

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.place), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # of files of others
            raise ValueError(f"--text {self.place} has no tokenizer that can be read: {first_line(error)}") from None
        # where there are no files, transformers makes one up, of special tokens alone
        if not tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens}:
            raise ValueError(f"--text {self.place} has no tokenizer's files, such as tokenizer.json: no word is known")
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise ValueError(f"--text {self.place}: its tokenizer has neither a token to fill up with nor one for the end")
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return tokenizer

    @cached_property
    def _model(self) -> Any:  # transformers' PreTrainedModel
        """Whole, float32, on the CPU; of a run's copy without weights, on meta."""
        from transformers import AutoConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            config = AutoConfig.from_pretrained(str(self.place), local_files_only=True, trust_remote_code=False)
            config = getattr(config, "text_config", config)  # of a model of pictures and texts its text tower
            kind = kind_of(config)
            if self.is_kept:
                with torch.device("meta"):
                    model = kind.from_config(config, dtype=torch.float32)
                told: Mapping[str, Any] = {"missing_keys": ()}
            else:
                with torch.device("cpu"):
                    model, told = kind.from_pretrained(
                        str(self.place), config=config, local_files_only=True, dtype=torch.float32, output_loading_info=True
                    )
        except Exception as error:  # of files of others
            raise ValueError(f"--text {self.place} {WRONG}: {first_line(error)}") from None
        self._lacking = {*told["missing_keys"]}
        if tied(model) and hasattr(model, "get_encoder"):  # T5's embeddings have two names, of which the encoder knows one
            model = model.get_encoder()
            self._lacking = {name.removeprefix("encoder.") for name in self._lacking}
        if twice := tied(model):
            raise ValueError(f"--text {self.place}: its {' and '.join(twice)} are one parameter, which has no place here")
        if scalars := [name for name, parameter in model.named_parameters() if not parameter.dim()]:
            raise ValueError(f"--text {self.place}: its {scalars[0]} is a single number, which cannot be shared by ranks")
        limit = getattr(model.config, "max_position_embeddings", None)
        if limit is not None and self._words > limit > 0:
            raise ValueError(f"--words {self._words}: the text tower takes {limit} tokens at most")
        return model.eval()

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What is pooled, how wide it is, and of which folder. Raises ValueError as `trial.tried` does, and for a tokenizer of
        another model."""
        if self.is_kept:
            found: dict[str, Any] = json.loads((self.place / FACTS).read_text())
            if found["pooling"] != "pooled" and hasattr(self._model, "pooler"):
                self._model.pooler = None
            return found
        known, embedded = len(self._tokenizer), len(self._model.get_input_embeddings().weight)
        if known > embedded:
            raise ValueError(
                f"--text {self.place}: its tokenizer has {known} tokens, and its model {embedded}: not of one model"
            )
        try:
            with torch.device("cpu"):
                pooling, width = tried(self._model, *self.tokens(texts_to_try(self._tokenizer, self._words)), self._pooling)
        except ValueError as error:
            raise ValueError(f"--text {self.place}: {error}") from None
        there = {name for name, _ in self._model.named_parameters()}  # without a pooler that is not used
        if lacking := sorted(there & self._lacking):
            raise ValueError(f"--text {self.place}: its weights lack {', '.join(lacking[:3])}")
        return {"pooling": pooling, "width": width, "from": str(self.place.resolve())}

    @property
    def width(self) -> int:
        """Of a feature."""
        return int(self.facts["width"])

    def tower(self) -> TextTower:
        """As it is on meta; `values` are its weights."""
        pooling = self.facts["pooling"]
        return TextTower(copy.deepcopy(self._model).to("meta"), pooling, self._buffers)

    @cached_property
    def _buffers(self) -> dict[str, Tensor]:
        if self.is_kept:
            return load_file(self.place / BUFFERS)
        return {name: buffer.detach().clone().contiguous() for name, buffer in self._model.named_buffers()}

    @cached_property
    def values(self) -> Mapping[str, Tensor]:
        """Of the parameters, float32, on the CPU, by their names in the tower. Raises ValueError for a run's copy."""
        if self.is_kept:
            raise ValueError(f"--text {self.place} is what a run kept, which has no weights: give a folder that has")
        _ = self.facts  # by which the model loses what is not pooled with
        return {f"tower.{name}": parameter.detach() for name, parameter in self._model.named_parameters()}

    def block(self, dtype: torch.dtype, trained: bool) -> tuple[BlockShape, int]:
        """A block on one text, and their number, to reckon with; of an architecture that tells them by other names, none."""
        config, L = self._model.config, self._words
        names = (("num_hidden_layers",), ("intermediate_size", "d_ff"), ("num_attention_heads",))
        found = [next((getattr(config, name) for name in each if hasattr(config, name)), None) for each in names]
        depth, mlp_dim, heads = (each if isinstance(each, int) else 0 for each in found)
        return BlockShape(L, L, self.width, mlp_dim, heads, dtype, trained), depth

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """B texts -> their tokens and which of them count, one at least, int64 (B, words) each."""
        told = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._words,
            return_tensors="np",
            return_attention_mask=True,
        )
        there_BL = told["attention_mask"].astype(np.int64)
        there_BL[:, 0] |= ~there_BL.any(1)  # attention over nothing is no number
        return told["input_ids"].astype(np.int64), there_BL

    def keep(self, run: Path) -> None:
        """Into a run's folder, whole or not at all; what an earlier start kept there goes. Raises OSError."""
        if self.is_kept:
            return
        facts = self.facts
        with tempfile.TemporaryDirectory(dir=run, prefix=f".{KEPT}-") as name:
            folder = Path(name) / KEPT
            self._tokenizer.save_pretrained(folder)
            self._model.config.save_pretrained(folder)
            save_file(self._buffers, folder / BUFFERS)
            (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
            if (run / KEPT).exists():
                shutil.rmtree(run / KEPT)
            folder.rename(run / KEPT)


def kind_of(config: Any) -> Any:
    """Which of transformers' classes reads the text tower of such a model. Raises ValueError for an encoder with a decoder."""
    from transformers import AutoModel, AutoModelForTextEncoding
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING, MODEL_MAPPING

    if type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING:
        return AutoModelForTextEncoding  # of T5 the encoder alone
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"it is an encoder and a decoder ({config.model_type})")
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"transformers has no model of texts alone for {config.model_type}")
    return AutoModel


def tied(model: nn.Module) -> list[str]:
    """Names of parameters that are the same one: on another device they would be two."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return next((each for each in names.values() if len(each) > 1), [])


def begun(place: str, pooling: Asked, words: int, run: Path | None) -> TextFolder:
    """The folder, or once a run has a checkpoint what it kept of it."""
    kept = run is not None and (run / KEPT / FACTS).is_file() and latest(run / "checkpoints") is not None
    return TextFolder(run / KEPT if run is not None and kept else place, pooling, words)
