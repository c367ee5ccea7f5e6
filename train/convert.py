#!/usr/bin/env python3
"""Convert weights: official, Hugging Face, timm and tubecell, each to each; and runs of tubecell to any.

    tubecell convert IN OUT --to tubecell     OUT.safetensors: official names, and in its metadata what it is
    tubecell convert IN OUT --to official     OUT.pth: for the code of VideoMAE and VideoMAE V2
    tubecell convert IN OUT --to hf           the folder OUT: for transformers 5.23 and later
    tubecell convert IN OUT --to timm         OUT.safetensors: for timm's VisionTransformer, built by model/timm_vit.py

IN is a file or folder of any of these layouts, found out by itself, a DeepSpeed folder, or a run. Nothing in it is executed.
OUT must not be there; it appears whole or not at all. What a layout cannot hold is said. Ends with 1 if --verify finds a
difference."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, BinaryIO

import torch
from torch import Tensor

from model.action_detector import ActionDetector, Regions
from model.classifier import VideoClassifier
from model.layers import PositionTable
from model.layouts import to_hf, to_timm
from model.pixels import IMAGENET_MEAN, IMAGENET_STD, into_targets_, patches_of
from model.video_encoder import VideoEncoder
from model.videomae import VideoMAE, weighted_error
from model.weight_files import read_weight_file
from model.weights import DETECT, HF_FINAL_EPS, Weights, listed, metadata_of, read_weights
from pipeline.console import exit_status
from pipeline.storage.files import Write, write_whole
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk
from pipeline.version import version
from train.checkpoint.source import read_source
from train.checkpoint.weights import apart, write_safetensors

HINTS = ("encoder_heads", "decoder_heads", "input_size", "num_frames")
SUFFIXES = {"tubecell": ".safetensors", "official": ".pth", "timm": ".safetensors", "hf": ""}
TRANSFORMERS = "5.23"  # before, biases of others' folders were lost in silence
LACKING = f"--verify needs transformers: pip install 'transformers>={TRANSFORMERS}'"
MOST = 1e-4  # largest difference of an output, relative to the largest output, that --verify takes for rounding
HF_CLASSES = {
    "autoencoder": "VideoMAEForPreTraining",
    "classifier": "VideoMAEForVideoClassification",
    "encoder": "VideoMAEModel",
}


@exit_status(ImportError, name="convert")
def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IN", help="weights of any layout, or the folder of a run")
    parser.add_argument("out", type=on_disk, metavar="OUT", help="what to write; a folder for hf, else a file")
    parser.add_argument("--to", required=True, choices=SUFFIXES, help="the layout to write")
    parser.add_argument("--verify", action="store_true", help="run both sides on random clips and print the difference")
    parser.add_argument("--key", help="the dictionary of IN to take, such as model_ema (default: model, or module)")
    parser.add_argument(
        "--heads", dest="encoder_heads", type=int, help="attention heads of the encoder, where IN does not tell"
    )
    parser.add_argument("--decoder-heads", type=int, help="those of the decoder")
    parser.add_argument("--input-size", type=int, help="height and width, in pixels, that IN was trained on (default: 224)")
    parser.add_argument("--num-frames", type=int, help="frames that IN was trained on (default: 16)")
    options = parser.parse_args(arguments)
    check_out(options.out, options.to)
    hints = {name: getattr(options, name) for name in ("key", *HINTS)}
    weights = read_source(options.source, **hints)
    print(weights)
    weights.check_same()
    if options.to not in ("tubecell", "official") and weights.kind == "detector":
        raise ValueError(
            f"{weights.place} is an action detector, of which --to {options.to} knows nothing; give --to tubecell or official"
        )
    of_probe = {"norm.weight", "pooler.query_tokens"} & weights.tensors.keys()
    if options.to != "tubecell" and weights.kind == "classifier" and of_probe:
        raise ValueError(
            f"{weights.place} is a probe's: its norm is of every token, before their mean or its pooler, of which "
            f"--to {options.to} knows nothing; give --to tubecell"
        )
    if options.verify and options.to == "hf" and find_spec("transformers") is None:
        raise ImportError(LACKING)  # before minutes of writing
    write, left = WRITERS[options.to](weights)
    print("\n".join(listed("cannot be held", left)), end="\n" if left else "")
    write_whole(options.out, write)
    print(f"{options.out}: written for {options.to}")
    check_tensors(weights, options.out, left)
    return verify(weights, options.source, options.out, options.to) if options.verify else 0


def check_out(out: Path, to: str) -> None:
    """Raises ValueError for a place that is taken, or not fit."""
    if out.exists():
        raise ValueError(f"{out} is there already; remove it, or give another name")
    if to != "hf" and out.suffix not in (SUFFIXES[to], ".pt", ".bin"):
        raise ValueError(f"{out} must end in {SUFFIXES[to]} with --to {to}")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"{out.absolute().parent} is no folder; make it first")
    refuse_dataset("OUT", out)


Writer = Write | Mapping[str, Write]


def tubecell(weights: Weights) -> tuple[Writer, dict[str, str]]:
    facts = {"tubecell": version(), **weights.metadata} | ({"stage": DETECT} if weights.detects else {})
    metadata = metadata_of(weights.config, weights.labels, **facts)
    return lambda file: write_safetensors(file, weights.tensors, metadata), {}


def check_positions(weights: Weights, to: str) -> None:
    """Raises ValueError for tables that are interpolated from another grid's, where the layout has those of its own alone."""
    config = weights.config
    if config.positions_grid != config.grid:
        grids = f"its positions are those of a grid of {config.positions_grid}, interpolated to {config.grid}"
        raise ValueError(f"{weights.place}: {grids}, which --to {to} cannot say; give --to tubecell or timm")


def official(weights: Weights) -> tuple[Writer, dict[str, str]]:
    """A dictionary `model`, as their scripts look for it; no number of heads, no sizes of views: their commands name them."""
    check_positions(weights, "official")
    left = _other_norms(weights, 1e-6, 1e-6)
    return lambda file: torch.save({"model": apart(weights.tensors)}, file), left


def hf(weights: Weights) -> tuple[Writer, dict[str, str]]:
    """Raises ValueError for what transformers' VideoMAE cannot compute."""
    check_positions(weights, "hf")
    config, tensors = weights.config, dict(weights.tensors)
    if weights.kind == "autoencoder" and len(tensors["decoder.head.weight"]) != config.patch_values:
        raise ValueError(f"{weights.place} predicts no pixels, as Hugging Face's VideoMAE does; give --to official or tubecell")
    left = _other_norms(weights, config.layer_norm_eps, HF_FINAL_EPS)
    if weights.kind == "encoder":
        norms = [name for name in tensors if name.startswith("fc_norm.")]
        left |= dict.fromkeys(norms, "VideoMAEModel has no norm after the mean")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in norms}
    described = hf_config(weights)
    processor = {
        "image_processor_type": "VideoMAEImageProcessor",
        "size": {"shortest_edge": config.input_size},
        "crop_size": {"height": config.input_size, "width": config.input_size},
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
    }
    return {
        "model.safetensors": lambda file: write_safetensors(file, to_hf(tensors), {"format": "pt"}),
        "config.json": lambda file: _write_json(file, described),
        "preprocessor_config.json": lambda file: _write_json(file, processor),
    }, left


def hf_config(weights: Weights) -> dict[str, Any]:
    """config.json of transformers' VideoMAE. The biases go by the name of 5.23 and by the one before."""
    config = weights.config
    found: dict[str, Any] = {
        "architectures": [HF_CLASSES[weights.kind]],
        "model_type": "videomae",
        "dtype": str(next(iter(weights.tensors.values())).dtype).removeprefix("torch."),
        "image_size": config.input_size,
        "num_frames": config.num_frames,
        "patch_size": config.patch_size,
        "tubelet_size": config.tubelet_size,
        "num_channels": 3,
        "hidden_act": "gelu",
        "hidden_size": config.encoder_dim,
        "num_hidden_layers": config.encoder_depth,
        "num_attention_heads": config.encoder_heads,
        "intermediate_size": config.encoder_mlp_dim,
        "decoder_hidden_size": config.decoder_dim,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_heads,
        "decoder_intermediate_size": config.decoder_mlp_dim,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.layer_norm_eps,
        "norm_pix_loss": True,
        "qkv_bias": True,
        "qv_bias": True,
        "use_mean_pooling": "encoder.norm.weight" not in weights.tensors,
    }
    if weights.kind == "classifier":
        names = weights.labels or [f"LABEL_{number}" for number in range(weights.num_classes)]
        found["id2label"] = {str(number): name for number, name in enumerate(names)}
        found["label2id"] = {name: number for number, name in enumerate(names)}
    return found


def timm(weights: Weights) -> tuple[Writer, dict[str, str]]:
    """With the position table as a parameter, and zeros for the bias of keys, which timm trains."""
    tensors, left = to_timm(weights.tensors, positions(weights))
    metadata = metadata_of(weights.config, weights.labels, tubecell=version())
    return lambda file: write_safetensors(file, tensors, metadata), left


WRITERS: Mapping[str, Callable[[Weights], tuple[Writer, dict[str, str]]]] = {
    "tubecell": tubecell,
    "official": official,
    "hf": hf,
    "timm": timm,
}


def positions(weights: Weights) -> Tensor:
    """The encoder's table (N, D)."""
    config = weights.config
    table = PositionTable(config.grid, config.encoder_dim, config.positions_grid)
    table.reset()
    return table.table


def _other_norms(weights: Weights, eps: float, last: float) -> dict[str, str]:
    """What a layout with these epsilons does not keep."""
    config, said = weights.config, {}
    if config.layer_norm_eps != eps:
        said[f"layer_norm_eps {config.layer_norm_eps:g}"] = f"it is {eps:g} there; outputs differ by rounding"
    if config.final_eps != last and any(name.startswith(("decoder.norm", "fc_norm")) for name in weights.tensors):
        said[f"the last norm's eps {config.final_eps:g}"] = f"it is {last:g} there; outputs differ by rounding"
    return said


def _write_json(file: BinaryIO, values: Mapping[str, Any]) -> None:
    file.write((json.dumps(values, indent=2) + "\n").encode())


def check_tensors(weights: Weights, out: Path, left: Mapping[str, str]) -> None:
    """Read what was written, and compare it with what was meant: all but what is `left`. Raises OSError if they differ: the
    disk is at fault."""
    back = read_back(weights, out)
    prefix = "encoder." if back.kind == "encoder" else ""
    meant = {name.removeprefix(prefix): tensor for name, tensor in weights.tensors.items() if name not in left}
    theirs = {name.removeprefix(prefix): tensor for name, tensor in back.tensors.items()}
    wrong = sorted(meant.keys() ^ theirs.keys())
    wrong += [name for name in meant.keys() & theirs.keys() if not torch.equal(meant[name], theirs[name])]
    if wrong:
        raise OSError(f"{out} reads back with another {', '.join(wrong[:4])}; do not use it")
    print(f"read back: {len(theirs)} of {len(weights.tensors)} tensors, all equal")


def read_back(weights: Weights, out: Path) -> Weights:
    """What was written, with the sizes that no file of its layout tells."""
    return read_weights(out, **{name: getattr(weights.config, name) for name in HINTS})


def verify(weights: Weights, source: str, out: Path, to: str) -> int:
    """Both sides' outputs on two random clips; those of Hugging Face and timm by their own code. 1 if they differ."""
    clips, masked = random_input(weights)
    if to == "timm" and weights.kind == "autoencoder":  # of which it has the encoder
        one = by_tubecell(weights, clips, masked, tokens=True)
    elif weights.layout.startswith("Hugging Face"):
        one = by_hf(source, clips, masked)
    else:
        one = by_timm(source, weights, clips) if weights.layout == "timm ViT" else by_tubecell(weights, clips, masked)
    gc.collect()
    if to == "hf":
        other = by_hf(str(out), clips, masked)
    else:
        other = by_timm(out, weights, clips) if to == "timm" else by_tubecell(read_back(weights, out), clips, masked)
    same = True
    assert one.keys() & other.keys(), (one.keys(), other.keys())
    for name in sorted(one.keys() & other.keys()):
        largest = one[name].abs().max().item()
        difference = (one[name] - other[name]).abs().max().item()
        print(f"{name} of {len(clips)} random clips: largest difference {difference:.1e}, of values up to {largest:.3g}")
        same = same and difference <= MOST * largest
    if same:
        return 0
    print(f"convert: the two sides differ by more than rounding ({MOST:g} of the largest): do not use {out}", file=sys.stderr)
    return 1


Outputs = dict[str, Tensor]


def random_input(weights: Weights) -> tuple[Tensor, Tensor]:
    """Two normalised clips (B, T, H, W, 3), and which of their tokens (B, N) are hidden: nine tenths, the same number in
    each."""
    config, generator = weights.config, torch.Generator().manual_seed(0)
    clips = torch.randn(2, config.num_frames, config.input_size, config.input_size, 3, generator=generator)
    order = torch.rand(2, config.num_tokens, generator=generator).argsort(1)
    return clips, order < config.num_tokens * 9 // 10


@torch.no_grad()
def by_tubecell(weights: Weights, clips: Tensor, masked: Tensor, *, tokens: bool = False) -> Outputs:
    """Logits of a classifier, or of a detector's box that is the whole view; what an autoencoder predicts of the hidden tokens;
    the tokens of an encoder, and of an autoencoder, if those are asked for."""
    if weights.kind == "encoder":
        return {"tokens": VideoEncoder.from_tensors(weights.config, weights.encoder()).forward_features(clips)}
    model = weights.build()
    if isinstance(model, VideoClassifier):
        return {"logits": model(clips)}
    if isinstance(model, ActionDetector):
        side, each = float(weights.config.input_size - 1), torch.arange(len(clips))
        return {"logits": model(clips, Regions(torch.tensor([0.0, 0.0, side, side]).expand(len(clips), 4), each))}
    if tokens:
        patches = patches_of(clips, model.config.patch_size, model.config.tubelet_size)
        return {"tokens": model.encoder(patches, torch.arange(model.config.num_tokens).expand(len(clips), -1))}
    return predicted(model, clips, masked)


@torch.no_grad()
def predicted(model: VideoMAE, clips: Tensor, masked: Tensor) -> Outputs:
    """V1's way: normalised clips (B, T, H, W, 3), of whose tokens (B, N) bool are hidden, the same number in each ->
    predictions (B, hidden, P) of those, and their loss, of the normalised pixels."""
    patches = patches_of(clips, model.config.patch_size, model.config.tubelet_size)
    visible, hidden = (mask.nonzero()[:, 1].view(len(clips), -1) for mask in (~masked, masked))
    seen, target = (patches.gather(1, index[..., None].expand(-1, -1, patches.shape[2])) for index in (visible, hidden))
    prediction = model(seen, visible, hidden, hidden.shape[1])
    found = {"predictions": prediction}
    if prediction.shape == target.shape:
        found["loss"] = weighted_error(prediction, into_targets_(target), torch.ones(target.shape[:2]))
    return found


@torch.no_grad()
def by_hf(folder: str, clips: Tensor, masked: Tensor) -> Outputs:
    """The same by transformers. Raises ValueError if it does not take all tensors, and ImportError where it is not
    installed."""
    try:
        import transformers
    except ImportError:
        raise ImportError(LACKING) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    kind = json.loads(Path(folder, "config.json").read_text())["architectures"][0]
    model, loading = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    for what, names in loading.items():
        if wrong := sorted(str(name) for name in names if not str(name).endswith("key.bias")):  # which has no effect
            raise ValueError(f"transformers {transformers.__version__} finds {what} in {folder}: {', '.join(wrong[:4])}")
    pixels = clips.permute(0, 1, 4, 2, 3)
    if kind == "VideoMAEForPreTraining":
        found = model.eval()(pixels, bool_masked_pos=masked)
        return {"predictions": found.logits, "loss": found.loss}
    found = model.eval()(pixels)
    return {"logits": found.logits} if kind == "VideoMAEForVideoClassification" else {"tokens": found.last_hidden_state}


@torch.no_grad()
def by_timm(file: str | Path, weights: Weights, clips: Tensor) -> Outputs:
    """The same by timm: logits, or the encoder's tokens."""
    from model.timm_vit import timm_vit  # timm takes longer to import than all else here

    tensors = read_weight_file(file).tensors
    model = timm_vit(weights.config, weights.num_classes, "fc_norm.weight" in tensors)
    model.load_state_dict(tensors)
    found = model.eval().forward_features(clips.permute(0, 4, 1, 2, 3))
    return {"logits": model.forward_head(found)} if weights.num_classes else {"tokens": found}


if __name__ == "__main__":
    sys.exit(main())
