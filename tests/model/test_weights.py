"""Files of every layout, made here from models of ours, and what must be refused."""

import argparse
import json
import os
import pickle
import sys
import types
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model.classifier import VideoClassifier
from model.config import MODELS, ModelConfig
from model.initialization import initialise
from model.layouts import to_hf, to_timm
from model.timm_vit import timm_vit
from model.videomae import VideoMAE
from model.weights import _sizes, metadata_of, ratio_of, read_weights, transfer

TINY = replace(MODELS["tiny"], input_size=16, num_frames=4)  # heads 4 and 2, widths 128 and 64
HINTS = {"encoder_heads": 4, "decoder_heads": 2, "input_size": 16, "num_frames": 4}


def filled(model: nn.Module) -> dict[str, Tensor]:
    initialise(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():  # no zeros: every bias counts
            parameter += 0.01 * torch.randn(parameter.shape)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="module")
def autoencoder() -> dict[str, Tensor]:
    return filled(VideoMAE(TINY))


@pytest.fixture(scope="module")
def classifier() -> dict[str, Tensor]:
    return filled(VideoClassifier(TINY, 5))


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        *((prefix, "model") for prefix in ("", "module.", "_orig_mod.", "module._orig_mod.", "model.", "backbone.")),
        *(("", key) for key in ("", "module", "state_dict")),
    ],
)
def test_official_files(
    autoencoder: dict[str, Tensor], classifier: dict[str, Tensor], tmp_path: Path, prefix: str, key: str
) -> None:
    for tensors in (autoencoder, classifier):
        state: Any = prefixed(tensors, prefix)
        arguments = argparse.Namespace(model="x", input_size=16, num_frames=4, output_dir=Path("/x"), lr=1e-3)
        whole = {key: state, "args": arguments, "epoch": 3, "optimizer": {"state": {}}} if key else state
        torch.save(whole, tmp_path / "x.pth")
        found = read_weights(tmp_path / "x.pth", **{} if key else HINTS)
        assert equal(found.tensors, tensors) and not found.left and not found.differs
        assert (found.sizes["input_size"], found.sizes["num_frames"]) == (16, 4)
        assert found.kind == ("autoencoder" if tensors is autoencoder else "classifier")


def test_blocks_that_were_compiled_one_by_one(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({name.replace("blocks.1.", "blocks.1._orig_mod."): t for name, t in classifier.items()}, tmp_path / "x.pth")
    assert equal(read_weights(tmp_path / "x.pth").tensors, classifier)


def test_a_head_beside_a_backbone(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    trunk = {name: tensor for name, tensor in classifier.items() if not name.startswith("head.")}
    torch.save(
        {"state_dict": prefixed(trunk, "backbone.") | {"cls_head.fc_cls.weight": torch.ones(3, 128)}}, tmp_path / "x.pth"
    )
    found = read_weights(tmp_path / "x.pth")
    assert equal(found.tensors, trunk) and found.kind == "encoder"
    assert found.left == {"cls_head.fc_cls.weight": "is not of backbone.*"} and "cls_head.fc_cls.weight" in str(found)


def test_deepspeed_folders(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-29"
    folder.mkdir()
    torch.save({"module": classifier, "model_ema": autoencoder_like(classifier)}, folder / "mp_rank_00_model_states.pt")
    assert equal(read_weights(folder).tensors, classifier)
    (tmp_path / "latest").write_text("checkpoint-29")
    found = read_weights(tmp_path)
    assert equal(found.tensors, classifier) and "there is model_ema, too" in str(found)
    assert not equal(read_weights(tmp_path, key="model_ema").tensors, classifier)
    (folder / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(ValueError, match="ZeRO stage 3"):
        read_weights(folder)


def autoencoder_like(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in tensors.items()}


HF_CONFIG = {
    "model_type": "videomae",
    "image_size": 16,
    "num_frames": 4,
    "num_attention_heads": 4,
    "decoder_num_attention_heads": 2,
}


def hf_folder(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(HF_CONFIG | config))
    return folder


def test_hugging_face_folders(autoencoder: dict[str, Tensor], classifier: dict[str, Tensor], tmp_path: Path) -> None:
    """Biases under the three kinds of names, a file or several, all three models."""
    encoder = {name: tensor for name, tensor in autoencoder.items() if name.startswith("encoder.")}
    for number, tensors in enumerate((autoencoder, classifier, encoder)):
        named = to_hf(tensors)
        found = read_weights(hf_folder(tmp_path / f"{number}", named, qkv_bias=True))
        assert equal(found.tensors, tensors) and not found.left and not found.differs
        assert (found.config.layer_norm_eps, found.config.final_eps) == (1e-12, 1e-5)
        other = {name.replace("q_bias", "query.bias").replace("v_bias", "value.bias"): t for name, t in named.items()}
        keys = {name.replace("q_bias", "key.bias"): torch.ones_like(t) for name, t in named.items() if "q_bias" in name}
        found = read_weights(hf_folder(tmp_path / f"{number}", other | keys, qv_bias=True))
        assert equal(found.tensors, tensors) and len(found.left) == len(keys)
    names = list(named)
    folder = hf_folder(tmp_path / "parts", {})
    places = {name: f"part-{place % 2}.safetensors" for place, name in enumerate(names)}
    for part in sorted(set(places.values())):
        save_file({name: named[name].clone() for name in names if places[name] == part}, folder / part)
    (folder / "model.safetensors").rename(folder / "x")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert equal(read_weights(folder).tensors, encoder)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"part-1\.safetensors, which is not there"):
        read_weights(folder)


def test_biases_that_a_program_lost_are_missed(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    named = {name: tensor for name, tensor in to_hf(classifier).items() if not name.endswith(("q_bias", "v_bias"))}
    with pytest.raises(ValueError, match="says that there are biases"):
        read_weights(hf_folder(tmp_path / "x", named))
    found = read_weights(hf_folder(tmp_path / "x", named, qv_bias=False))
    assert not found.tensors["blocks.0.attn.q_bias"].any() and "attn.qkv.weight" in str(list(found.tensors))


def test_what_transformers_makes_and_ours_is_not(
    autoencoder: dict[str, Tensor], classifier: dict[str, Tensor], tmp_path: Path
) -> None:
    """A pre-training model of its own default configuration, and a classifier by the first token: to begin with, no more."""
    bare = {name: tensor for name, tensor in to_hf(autoencoder).items() if ".layernorm." not in name}
    found = read_weights(hf_folder(tmp_path / "a", bare, architectures=None))
    assert found.kind == "autoencoder" and found.differs == ("its encoder has no last norm (use_mean_pooling is true)",)
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in VideoMAE(TINY).named_parameters()}
    assert transfer(found, shapes).fresh == ["encoder.norm.weight", "encoder.norm.bias"]
    first = {name.replace("fc_norm.", "videomae.layernorm."): tensor for name, tensor in to_hf(classifier).items()}
    found = read_weights(hf_folder(tmp_path / "c", first))
    assert found.kind == "encoder" and set(found.left) == {"head.weight", "head.bias"}
    with pytest.raises(ValueError, match="another network: it classifies by its first token"):
        found.check_same()


def test_class_names(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    names = ["run", "jump", "sit", "eat", "hug"]
    folder = hf_folder(tmp_path / "x", to_hf(classifier), id2label=dict(enumerate(names)))
    assert read_weights(folder).labels == names
    folder = hf_folder(tmp_path / "x", to_hf(classifier), id2label={number: f"LABEL_{number}" for number in range(5)})
    assert read_weights(folder).labels is None


def test_v2_encoders_of_the_hub(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    trunk = {name: tensor for name, tensor in classifier.items() if not name.startswith("head.")}
    folder = hf_folder(tmp_path / "x", prefixed(trunk, "model."))
    sizes = {"img_size": 16, "num_frames": 4, "num_heads": 4, "layer_norm_eps": 1e-6}
    (folder / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_Base", "model_config": sizes}))
    found = read_weights(folder)
    assert equal(found.tensors, trunk) and found.kind == "encoder"
    assert replace(found.config, decoder_dim=64, decoder_depth=2, decoder_heads=2) == TINY


@pytest.mark.parametrize("kind", ["autoencoder", "classifier"])
def test_timm(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    tensors = request.getfixturevalue(kind)
    model = VideoMAE(TINY) if kind == "autoencoder" else VideoClassifier(TINY, 5)
    table = (model.encoder if isinstance(model, VideoMAE) else model).positions.table
    named, left = to_timm(tensors, table)
    timm_vit(TINY, 0 if kind == "autoencoder" else 5, kind == "classifier").load_state_dict(named)  # strictly
    torch.save(named, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth", **HINTS)
    kept = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items() if name not in left}
    assert equal(found.encoder(), kept) and not found.differs
    torch.save(named | {"pos_embed": named["pos_embed"] + 1}, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth", **HINTS)
    assert found.differs == ("its positions are others",)
    with pytest.raises(ValueError, match="another network: its positions are others"):
        found.check_same()


def test_a_vit_of_images_may_be_begun_with(tmp_path: Path) -> None:
    """A still clip is embedded as the image is."""
    image = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=7)
    torch.save(image.state_dict(), tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert found.layout == "timm ViT of images" and found.config.encoder_heads == 3 and len(found.differs) == 4
    assert set(found.left) == {"cls_token", "pos_embed", "head.weight", "head.bias"}
    kernel = found.tensors["patch_embed.proj.weight"]
    assert torch.allclose(kernel.sum(2), image.patch_embed.proj.weight)
    with torch.device("meta"):
        model = VideoMAE(replace(found.config, decoder_dim=64, decoder_heads=1, decoder_depth=1))
    taken = transfer(found, {name: parameter.shape for name, parameter in model.named_parameters()})
    assert "encoder.norm.weight" in taken.taken and "mask_token" in taken.fresh and not taken.unused


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-500])


def flip(file: Path) -> None:
    """A bit of a tensor."""
    with zipfile.ZipFile(file) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        offset = largest.header_offset + 1000 + largest.file_size // 2
    data = bytearray(file.read_bytes())
    data[offset] ^= 16
    file.write_bytes(data)


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda file: file.write_bytes(b"") and None, "is empty"),
    "a web page": (lambda file: file.write_text("\n <!DOCTYPE html><html>404") and None, "is a web page"),
    "a pointer": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\noid") and None, "git lfs pull"),
    "JSON": (lambda file: file.write_text('{"a": 1}') and None, "is JSON"),
    "a pickle of others": (
        lambda file: file.write_bytes(pickle.dumps({"a": 1})) and None,
        "or not what torch.save writes: Unsup",
    ),
    "no values": (lambda file: torch.save({"a": torch.ones(2, device="meta")}, file), "a has a shape and no values"),
    "a pipe": (lambda file: file.unlink() or os.mkfifo(file), "is a pipe or a device"),
    "text": (lambda file: file.write_text("weights") and None, "neither safetensors nor"),
    "cut off": (cut, "damaged, or cut off"),
    "a bit": (flip, "the checksum of .* is wrong"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_files_that_are_no_weights(classifier: dict[str, Tensor], tmp_path: Path, fault: str) -> None:
    spoil, words = REFUSED[fault]
    torch.save({"model": classifier}, file := tmp_path / "x.pth")
    spoil(file)
    with pytest.raises(ValueError, match=words) as caught:
        read_weights(file)
    assert "\n" not in str(caught.value) and str(file) in str(caught.value)


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> type:
    """yacs's, a dictionary's subclass."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": module.__name__})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kind: type = module.CfgNode
    return kind


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_executed(classifier: dict[str, Tensor], tmp_path: Path, settings: type, legacy: bool) -> None:
    trace, file = tmp_path / "executed", tmp_path / "x.pth"
    torch.save({"model": classifier, "args": Hostile(trace)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="open"):
        read_weights(file)
    assert not trace.exists()
    arguments = argparse.Namespace(input_size=16, num_frames=4, out=Path("x"), best=np.float64(0.5), more=settings({"lr": 1}))
    torch.save({"model": classifier, "args": arguments}, file, _use_new_zipfile_serialization=not legacy)
    found = read_weights(file)
    assert equal(found.tensors, classifier) and found.sizes["input_size"] == 16
    arguments.input_size = [Hostile(trace)]
    torch.save({"model": classifier, "args": arguments}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"holds .*open, whose code would run"):
        read_weights(file)
    assert not trace.exists()
    torch.save(VideoClassifier(TINY, 5), file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match=r"holds .*\.\w+.* would run"):
        read_weights(file)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("blocks.1.attn.proj.weight"), r"lacks blocks\.1\.attn\.proj\.weight"),
        (lambda t: [t.pop(name) for name in list(t) if name.startswith("blocks.1.")], r"lacks blocks\.1, of 4"),
        (lambda t: t.update({"fc_norm.bias": torch.zeros(3)}), r"fc_norm\.bias of shape \(128,\) \(it has \(3,\)\)"),
        (lambda t: t.update({"blocks.0.mlp.fc1.bias": torch.full((512,), torch.nan)}), "not finite"),
        (lambda t: t.update({"head.weight": torch.ones(5, 128, dtype=torch.int8)}), "torch.int8"),
        (lambda t: t.clear() or t.update({"conv1.weight": torch.ones(3, 3)}), "no VideoMAE"),
        (lambda t: t.clear(), "holds no tensors"),
    ],
)
def test_tensors_that_are_no_whole_network(
    classifier: dict[str, Tensor], tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], words: str
) -> None:
    tensors = dict(classifier)
    change(tensors)
    torch.save({"model": tensors} if tensors else {"model": {}}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=words):
        read_weights(tmp_path / "x.pth")


def test_another_network_is_told_by_what_it_has_more(classifier: dict[str, Tensor], tmp_path: Path) -> None:
    more = {"pos_embed": torch.ones(1, 8, 128), "blocks.0.gamma_1": torch.ones(128), "something": torch.ones(2)}
    torch.save(classifier | more, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert equal(found.tensors, classifier) and set(found.left) == set(more) and len(found.differs) == 3


def test_heads_that_nothing_tells(autoencoder: dict[str, Tensor], tmp_path: Path) -> None:
    odd = replace(TINY, encoder_dim=36, encoder_heads=3, decoder_dim=24, decoder_heads=2)
    tensors = filled(VideoMAE(odd))
    torch.save(tensors, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth", input_size=16, num_frames=4)
    with pytest.raises(ValueError, match="how many heads its encoder has, 36 wide; give --heads"):
        _ = found.config
    found = read_weights(tmp_path / "x.pth", encoder_heads=3, decoder_heads=2, input_size=16, num_frames=4)
    assert found.config == odd


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_found_out(name: str) -> None:
    """All sizes of the paper from shapes alone, ViT-g's MLPs included."""
    config = replace(MODELS[name], input_size=224, num_frames=16)  # which no shape tells
    with torch.device("meta"):
        tensors = dict(VideoMAE(config).state_dict())
    assert ModelConfig(**_sizes(tensors, {}, "x")) == config


def test_ratios() -> None:
    assert all(int(width * ratio_of(width, mlp)) == mlp for width in (36, 192, 512, 1408) for mlp in range(width, 5 * width, 7))


def test_what_a_model_takes(autoencoder: dict[str, Tensor], classifier: dict[str, Tensor], tmp_path: Path) -> None:
    def shapes(model: nn.Module) -> dict[str, torch.Size]:
        return {name: parameter.shape for name, parameter in model.named_parameters()}

    torch.save(autoencoder, tmp_path / "a.pth")
    torch.save(classifier, tmp_path / "c.pth")
    a, c = (read_weights(tmp_path / f"{name}.pth", **HINTS) for name in "ac")
    again = transfer(a, shapes(VideoMAE(TINY)))
    assert equal(again.taken, autoencoder) and not again.fresh and not again.unused
    smaller = transfer(a, shapes(VideoMAE(replace(TINY, decoder_dim=32))))
    assert all(name.startswith(("decoder", "encoder_to", "mask")) for name in smaller.fresh)
    assert smaller.taken.keys() | set(smaller.fresh) == autoencoder.keys() and len(smaller.unused) == len(smaller.fresh)
    shallower = transfer(a, shapes(VideoMAE(replace(TINY, decoder_depth=1))))
    assert "mask_token" in shallower.fresh
    features = transfer(a, shapes(VideoMAE(TINY, target_values=8)))
    assert features.fresh == ["decoder.head.weight", "decoder.head.bias"]
    begun = transfer(c, shapes(VideoMAE(TINY)))
    assert torch.equal(begun.taken["encoder.blocks.0.mlp.fc1.weight"], classifier["blocks.0.mlp.fc1.weight"])
    assert {"fc_norm.weight", "head.weight"} <= set(begun.unused) and "encoder.norm.weight" in begun.fresh
    chosen = transfer(c, shapes(VideoClassifier(TINY, 2)), classes=[3, 1])
    assert torch.equal(chosen.taken["head.weight"], classifier["head.weight"][[3, 1]]) and not chosen.unused
    with pytest.raises(ValueError, match="head of 5 classes; there is no class 5"):
        transfer(c, shapes(VideoClassifier(TINY, 2)), classes=[3, 5])
    for other in (replace(TINY, encoder_dim=64), replace(TINY, encoder_depth=3), replace(TINY, encoder_depth=5)):
        with pytest.raises(ValueError, match=r"does not fit the model: .*blocks of 128, patch 8"):
            transfer(a, shapes(VideoMAE(other)))


def test_a_file_of_ours_says_what_it_is(autoencoder: dict[str, Tensor], tmp_path: Path) -> None:
    odd = replace(TINY, encoder_heads=8)
    save_file(autoencoder, file := tmp_path / "x.safetensors", {"model": json.dumps(asdict(odd)), "step": "7"})
    found = read_weights(file)
    assert found.config == odd and found.metadata == {"step": "7"} and found.layout == "tubecell"
    for other in ("ViT-S", '"tiny"', "[1]"):  # of another program, as its labels are
        save_file(autoencoder, file, {"model": other, "labels": "walk, run", "config": "x"})
        found = read_weights(file, **HINTS)
        assert found.layout == "official names" and metadata_of(found.config, **found.metadata)["config"] == "x"
    save_file(autoencoder, file, {"model": json.dumps(asdict(odd) | {"encoder_heads": "six"})})
    with pytest.raises(ValueError, match="encoder_heads is 'six', which is no number"):
        read_weights(file)
    save_file(autoencoder, file, {"model": json.dumps(asdict(odd) | {"wings": 2})})
    with pytest.raises(ValueError, match="wings, which this tubecell does not know"):
        read_weights(file)
    save_file(autoencoder, file, {"model": json.dumps(asdict(odd) | {"encoder_dim": 64})})
    with pytest.raises(ValueError, match="encoder_dim is 128 by its tensors, and 64"):
        read_weights(file)
