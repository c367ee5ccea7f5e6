"""Text towers of transformers, tiny and made on the spot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SAID = "a b the shape moves to left right falls down rises up sways and bobs swells shrinks rests it slides"
WORDS = sorted(set(SAID.split()))
SPECIAL = ["[PAD]", "[UNK]", "[BOS]", "[EOS]"]
PAD, UNK, BOS, EOS = range(4)
WIDTH = 32


def save_tokenizer(folder: Path, words: list[str] = WORDS, *, ends: bool) -> int:
    """Of whole words; `ends`: between the tokens of begin and end, as CLIP's, BERT's and RoBERTa's are. -> their number."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if ends:
        special = [("[BOS]", BOS), ("[EOS]", EOS)]
        tokenizer.post_processor = TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=special)
    named = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    return len(numbers)


def sizes(number: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": number,
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
        **more,
    }


def clip_text(number: int) -> Any:
    from transformers import CLIPTextConfig

    # 2 is what transformers takes for CLIP's first release, whose end is the largest number
    return CLIPTextConfig(**sizes(number), eos_token_id=EOS, bos_token_id=BOS, pad_token_id=PAD, projection_dim=24)


def bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(BertConfig(**sizes(save_tokenizer(folder, ends=True)))).save_pretrained(folder)


def bert_without_pooler(folder: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(BertConfig(**sizes(save_tokenizer(folder, ends=False)))).save_pretrained(folder)


def roberta(folder: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(**sizes(save_tokenizer(folder, ends=True)), pad_token_id=PAD)
    RobertaModel(config).save_pretrained(folder)


def distilbert(folder: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    number = save_tokenizer(folder, ends=True)
    config = DistilBertConfig(vocab_size=number, dim=WIDTH, n_layers=1, n_heads=2, hidden_dim=64, max_position_embeddings=16)
    DistilBertModel(config).save_pretrained(folder)


def clip(folder: Path) -> None:
    from transformers import CLIPTextModel

    CLIPTextModel(clip_text(save_tokenizer(folder, ends=True))).save_pretrained(folder)


def clip_with_projection(folder: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    CLIPTextModelWithProjection(clip_text(save_tokenizer(folder, ends=True))).save_pretrained(folder)


def clip_of_both(folder: Path) -> None:
    """With its tower of pictures."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    seen = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    text = clip_text(save_tokenizer(folder, ends=True))
    CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=seen.to_dict(), projection_dim=24)).save_pretrained(folder)


def t5_encoder(folder: Path) -> None:
    from transformers import T5Config, T5EncoderModel

    number = save_tokenizer(folder, ends=False)
    T5EncoderModel(T5Config(vocab_size=number, d_model=WIDTH, d_ff=64, d_kv=16, num_layers=1, num_heads=2)).save_pretrained(
        folder
    )


def t5(folder: Path) -> None:
    """With its decoder, which is left."""
    from transformers import T5Config, T5ForConditionalGeneration

    number = save_tokenizer(folder, ends=False)
    config = T5Config(vocab_size=number, d_model=WIDTH, d_ff=64, d_kv=16, num_layers=1, num_heads=2, decoder_start_token_id=PAD)
    T5ForConditionalGeneration(config).save_pretrained(folder)


def gpt2(folder: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    number = save_tokenizer(folder, ends=False)
    config = GPT2Config(
        vocab_size=number, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=16, bos_token_id=BOS, eos_token_id=EOS
    )
    GPT2Model(config).save_pretrained(folder)


TOWERS: dict[str, tuple[Callable[[Path], None], str]] = {  # and what is pooled
    "BERT": (bert, "mean"),
    "BERT without a pooler": (bert_without_pooler, "mean"),
    "RoBERTa": (roberta, "mean"),
    "DistilBERT": (distilbert, "mean"),
    "CLIP": (clip, "pooled"),
    "CLIP with its projection": (clip_with_projection, "pooled"),
    "CLIP with its pictures": (clip_of_both, "pooled"),
    "T5's encoder": (t5_encoder, "mean"),
    "T5": (t5, "mean"),
    "GPT-2": (gpt2, "mean"),
}


def made(name: str, folder: Path) -> Path:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    TOWERS[name][0](folder)
    return folder
