"""tubecell under the names that the second parity suite calls: what comes after pre-training.

    python ../shared/parity/stages/compare_stages.py --adapter tests/stages_adapter.py

The interface is described at the head of compare_stages.py. A function returns None for what is not supported.
"""

import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if sys.path[0] != str(ROOT):
    sys.path.insert(0, str(ROOT))

import torch
from einops import rearrange

from model.classifier import VideoClassifier
from model.config import ModelConfig
from model.pixels import pasted, patches_of
from model.weight_files import tensors_of
from model.weights import read_weights, transfer, understand
from tests.parity_adapter import to_uint8
from train.convert import predicted

SHARED = Path(os.environ.get("TUBECELL_SHARED", ROOT.parent / "shared"))


# -------------------------------------------------------------------------------------------------------- checkpoints


def load_checkpoint(path):
    weights = read_weights(path)
    return {"layout": weights.layout, "params": weights.tensors}


def hf_forward(folder, pixel_values, mask, dtype):
    model, clips = read_weights(folder).build().to(dtype), pixel_values.permute(0, 1, 3, 4, 2)
    if mask is None:
        with torch.no_grad():
            return {"logits": model(clips)}
    found = predicted(model, clips, mask)
    return {"logits": found["predictions"], "loss": found["loss"]}


def official_forward(path, clip, dtype):
    model = read_weights(path, **told(path)).build().to(dtype)
    with torch.no_grad():
        return model(clip.permute(0, 2, 3, 4, 1))


def told(path):
    """What the suite says of a file that does not tell."""
    folder = next(folder for folder in Path(path).parents if folder.name == "checkpoints")
    cases = json.loads((folder.parent / "checkpoints.json").read_text())["forward"]
    cfg = next(case["cfg"] for case in cases if folder / case["file"] == Path(path))
    return {"encoder_heads": cfg["num_heads"], "input_size": cfg["img_size"], "num_frames": cfg["all_frames"]}


def load_for_finetune(cfg, checkpoint, dataset):
    config = ModelConfig(
        input_size=cfg["img_size"],
        num_frames=cfg["all_frames"],
        patch_size=cfg["patch_size"],
        encoder_dim=cfg["embed_dim"],
        encoder_depth=cfg["depth"],
        encoder_heads=cfg["num_heads"],
        mlp_ratio=cfg["mlp_ratio"],
    )
    with torch.device("meta"):
        model = VideoClassifier(config, cfg["num_classes"])
    weights = understand(tensors_of(checkpoint, "the checkpoint"))
    classes = None
    if weights.num_classes == 710 != cfg["num_classes"] and dataset.startswith("Kinetics-"):
        maps = SHARED / "annotations" / "kinetics710"
        classes = json.loads((maps / f"label_710to{dataset.removeprefix('Kinetics-')}.json").read_text())
    found = transfer(weights, {name: parameter.shape for name, parameter in model.named_parameters()}, classes)
    # a head of other classes is removed there before names are compared
    unused = [name.removeprefix("encoder.") for name in found.unused if name not in found.fresh]
    return {"params": found.taken, "kept": found.fresh, "unused": unused}


# -------------------------------------------------------------------------------------------------------------- demos


def reconstruct(clip, mask, pred, patch):
    views = to_uint8(clip)
    both = pasted(patches_of(views, patch, 2), mask.nonzero()[:, 1][None], pred)
    as_clip = "1 (t r c) (s p q k) -> k (t s) (r p) (c q)"
    sizes = {"r": views.shape[2] // patch, "c": views.shape[3] // patch, "s": 2, "p": patch, "q": patch}
    return dict(zip(("reconstruction", "masked"), (rearrange(each, as_clip, **sizes) for each in both), strict=True))
