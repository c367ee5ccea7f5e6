"""Towers of several kinds: each loads, pools what it should, learns, and what is none is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from model.config import Implementation
from model.two_towers import TwoTowers
from tests.train.retrieval.towers import BOS, EOS, PAD, TOWERS, WIDTH, bert, clip_text, made, save_tokenizer
from train.recipes.retrieving import RECIPES
from train.retrieval.contrastive import contrastive_loss
from train.retrieval.text_folder import KEPT, TextFolder, begun

TEXTS = ["a shape falls down", "a shape rises", "a shape", "it slides to the left and to the right and up and down"]
LONG = 12


def model_of(folder: TextFolder) -> TwoTowers:
    """As the trainer makes it, on the CPU."""
    config = RECIPES["micro"]().model
    with torch.device("meta"):
        tower = folder.tower()
        model = TwoTowers(config, tower, folder.width, 16, lambda name: folder.values[name], 0.0, Implementation())
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(model.initial_value(name, tuple(parameter.shape), 0))
    model.reset_buffers()
    return model


def tokens(folder: TextFolder) -> tuple[torch.Tensor, torch.Tensor]:
    ids, there = folder.tokens(TEXTS)
    return torch.from_numpy(ids), torch.from_numpy(there)


@pytest.mark.parametrize("name", TOWERS)
def test_a_tower_is_what_transformers_computes_and_learns(name: str, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForTextEncoding, CLIPTextModel

    place = made(name, tmp_path / "tower")
    folder = TextFolder(place, "auto", LONG)
    assert folder.facts["pooling"] == TOWERS[name][1] and folder.width == WIDTH
    ids, there = tokens(folder)
    model = model_of(folder)
    reader = CLIPTextModel if "CLIP" in name else AutoModelForTextEncoding if "T5" in name else AutoModel
    theirs = reader.from_pretrained(place).eval()
    with torch.no_grad():
        found = theirs(input_ids=ids, attention_mask=there)
        x_BLD = found.last_hidden_state
        want = (x_BLD * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        if "CLIP" in name:
            want = x_BLD[torch.arange(len(ids)), (ids == EOS).int().argmax(1)]  # of the token that ends the text
            torch.testing.assert_close(want, found.pooler_output)
        torch.testing.assert_close(model.text(ids, there), want)
    views = torch.randint(0, 256, (len(ids), 8, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    optimizer, losses, each = torch.optim.SGD(model.parameters(), lr=1e-3), list[float](), torch.arange(len(ids))
    for _ in range(2):
        loss, _ = contrastive_loss(*model(views, ids, there), each, each, each >= 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]
    text = {n: p for n, p in model.named_parameters() if n.startswith("text.")}
    assert not [n for n, parameter in text.items() if parameter.grad is None or not parameter.grad.any()]


@pytest.mark.parametrize("name", ["BERT", "CLIP with its pictures", "T5", "GPT-2"])
def test_a_run_keeps_what_reading_texts_needs(name: str, tmp_path: Path) -> None:
    place, run = made(name, tmp_path / "tower"), tmp_path / "run"
    run.mkdir()
    folder = begun(str(place), "auto", LONG, run)
    model, (ids, there) = model_of(folder), tokens(folder)
    folder.keep(run)
    folder.keep(run)  # a later start
    assert begun(str(place), "auto", LONG, run).place == place  # a run without a checkpoint begins with the tower's weights
    shutil.rmtree(place)
    kept = TextFolder(run / KEPT, "auto", LONG)
    assert sum(file.stat().st_size for file in (run / KEPT).iterdir()) < 200_000 and not [*run.glob(".*")]
    assert kept.facts == folder.facts and all(
        (a == b).all() for a, b in zip(kept.tokens(TEXTS), folder.tokens(TEXTS), strict=True)
    )
    with torch.device("meta"):
        again = TwoTowers(model.config, kept.tower(), kept.width, 16, lambda name: torch.empty(0), 0.0, Implementation())
    again.to_empty(device="cpu")
    again.load_state_dict(model.state_dict())
    again.reset_buffers()
    assert torch.equal(again.text(ids, there), model.text(ids, there))
    with pytest.raises(ValueError, match="has no weights"):
        _ = kept.values


def test_texts_are_cut_and_nothing_is_no_number(tmp_path: Path) -> None:
    place = made("BERT without a pooler", tmp_path / "tower")
    folder = TextFolder(place, "auto", 4)
    ids, there = folder.tokens(["", "a b " * 1000, "漢字", "a"])
    assert ids.shape == (4, 4) and there.sum(1).tolist() == [1, 4, 1, 1]
    model = model_of(folder)
    assert torch.isfinite(model.text(torch.from_numpy(ids), torch.from_numpy(there))).all()


def test_refused_by_name(tmp_path: Path) -> None:
    from transformers import CLIPTextModel, SiglipTextConfig, SiglipTextModel

    with pytest.raises(ValueError, match="the text tower takes 16 tokens at most"):
        _ = TextFolder(made("BERT", tmp_path / "bert"), "auto", 17).facts
    with pytest.raises(ValueError, match=r"fails on texts of 16 tokens .*perhaps a lower --words"):
        _ = TextFolder(made("RoBERTa", tmp_path / "roberta"), "auto", 16).facts  # its places begin after the padding's
    with pytest.raises(ValueError, match=r"--pooling first: .*its tokens see only what stands before them"):
        _ = TextFolder(made("GPT-2", tmp_path / "gpt2"), "first", LONG).facts
    with pytest.raises(ValueError, match="--pooling pooled: it pools nothing"):
        _ = TextFolder(tmp_path / "gpt2", "pooled", LONG).facts
    number = save_tokenizer(tmp_path / "endless", ends=False)
    CLIPTextModel(clip_text(number)).save_pretrained(tmp_path / "endless")
    with pytest.raises(ValueError, match="its tokenizer ends no text with the token that it pools at"):
        _ = TextFolder(tmp_path / "endless", "auto", LONG).facts
    assert TextFolder(tmp_path / "endless", "mean", LONG).width == WIDTH
    bert(tmp_path / "other")
    save_tokenizer(tmp_path / "other", ["more", "words", *map(str, range(50))], ends=True)
    with pytest.raises(ValueError, match=r"its tokenizer has 56 tokens, and its model .*not of one model"):
        _ = TextFolder(tmp_path / "other", "auto", LONG).facts
    config = SiglipTextConfig(vocab_size=30, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, bos_token_id=BOS)
    config.eos_token_id, config.pad_token_id = EOS, PAD
    SiglipTextModel(config).save_pretrained(tmp_path / "siglip")
    save_tokenizer(tmp_path / "siglip", ends=True)
    with pytest.raises(ValueError, match="no model of texts alone for siglip_text_model"):
        _ = TextFolder(tmp_path / "siglip", "auto", LONG).facts
    (tmp_path / "bart").mkdir()
    (tmp_path / "bart" / "config.json").write_text(json.dumps({"model_type": "bart"}))
    with pytest.raises(ValueError, match=r"it is an encoder and a decoder \(bart\)"):
        TextFolder(tmp_path / "bart", "auto", LONG).block(torch.float32, True)
    for file in (tmp_path / "bert").glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        TextFolder(tmp_path / "bert", "auto", LONG).tokens(TEXTS)
    (tmp_path / "gpt2" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="has no tokenizer that can be read"):
        TextFolder(tmp_path / "gpt2", "auto", LONG).tokens(TEXTS)
