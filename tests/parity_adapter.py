"""tubecell under the names that the parity suite calls, on the path that training takes: uint8 views and token indices.

    python ../shared/parity/compare.py --adapter tests/parity_adapter.py

The interface is described at the head of compare.py. An adapter function returns None for what is not supported.
"""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[1])
if sys.path[0] != ROOT:
    sys.path.insert(0, ROOT)

import numpy as np
import torch
from torch import Tensor

from model.classifier import VideoClassifier
from model.config import MODELS, ModelConfig
from model.pixels import IMAGENET_MEAN, IMAGENET_STD, gather_patches, pixel_targets
from model.videomae import VideoMAE, pixel_loss
from pipeline import keyed, sampling
from pipeline.sampling import crops, masking
from pipeline.sampling.masks.tube import tube_masks as of_tubes
from train.compute.optimizer import build_optimizer, lr_at, parameter_groups, set_lr

ARCHITECTURES = {
    "small_patch16": "vit-s",
    "base_patch16": "vit-b",
    "large_patch16": "vit-l",
    "huge_patch16": "vit-h",
    "giant_patch14": "vit-g",
}
IGNORED = {"init_scale", "decoder_num_classes", "num_classes"}  # initialisation, or read elsewhere
# Official arguments of which only this value is supported; of those not listed only a false one is.
DEFAULTS = {"qkv_bias": True, "use_mean_pooling": True, "in_chans": 3, "encoder_in_chans": 3}


# ------------------------------------------------------------------------------------------------ model and optimizer


def pretrain(cfg, sd, clip, mask, decode_mask, dtype):
    config = pretrain_config(cfg)
    if config is None:
        return None
    model = VideoMAE(config)
    model.load_state_dict(sd)
    model.to(dtype)
    return run_pretrain(model, clip, mask, decode_mask)


def targets(clip, patch_size, dtype):
    views = to_uint8(clip)
    B, T, H, W, _ = views.shape
    num_tokens = T // 2 * (H // patch_size) * (W // patch_size)
    every = torch.arange(num_tokens).expand(B, -1)
    return pixel_targets(gather_patches(views, every, patch_size, 2), dtype)


def trajectory(cfg, sd, batches, epochs, opt, max_norm, dtype):
    config = pretrain_config(cfg)
    if config is None:
        return None
    model = VideoMAE(config)
    model.load_state_dict(sd)
    model.to(dtype)
    betas = tuple(opt["opt_betas"])
    optimizer = build_optimizer(parameter_groups(model.named_parameters(), opt["weight_decay"]), betas, opt["eps"])
    total, warmup = epochs * len(batches), int(opt["warmup_epochs"] * len(batches))
    losses = []
    for step in range(total):
        set_lr(optimizer, lr_at(step, peak=opt["lr"], final=opt["min_lr"], total_steps=total, warmup_steps=warmup))
        loss = pixel_loss(model, *step_inputs(*batches[step % len(batches)]))
        optimizer.zero_grad()
        loss.backward()
        if max_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        losses.append(loss.item())
    return {"loss": losses, "final": model.state_dict()}


def finetune(cfg, sd, clip, dtype):
    config = finetune_config(cfg)
    if config is None:
        return None
    model = VideoClassifier(config, cfg["num_classes"])
    model.load_state_dict(sd)
    model.to(dtype).eval()
    with torch.no_grad():
        features = model.features(to_uint8(clip))
        return {"features": features, "logits": model.head(features)}


def vitb(clip, mask, decode_mask, dtype):
    from refutil import fill_module  # beside compare.py

    model = VideoMAE(MODELS["vit-b"])
    fill_module(model)
    result = run_pretrain(model.to(dtype), clip, mask, decode_mask)
    result["grad_norms"] = {name: grad.double().norm().item() for name, grad in result.pop("grads").items()}
    return result


def lr_schedule(base, final, epochs, niter, warmup_epochs, start):
    total, warmup = epochs * niter, warmup_epochs * niter
    return [lr_at(i, peak=base, final=final, total_steps=total, warmup_steps=warmup, start=start) for i in range(total)]


def num_params(kind, arch, num_classes):
    return sum(p.numel() for p in meta_model(kind, arch, num_classes).parameters())


def param_groups(kind, arch, weight_decay, layer_decay):
    named = list(meta_model(kind, arch, 710).named_parameters())
    depth = MODELS[ARCHITECTURES[arch]].encoder_depth
    groups = parameter_groups(named, weight_decay, layer_decay if layer_decay != 1 else None, depth)
    found = {id(p): (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: found[id(p)] for name, p in named}


# ------------------------------------------------------------------------------------ masks, frames and crops (pipeline)


def tube_masks(window, ratio, n, seed):
    return of_tubes(keyed.mix(seed, np.arange(n)), window, ratio).reshape(n, window[0], -1)


def running_cell_masks(window, ratio, n, seed):
    """Read back from the decoder's indices, which is what training takes."""
    _, decoded, _ = masking.mask_indices(keyed.mix(seed, np.arange(n)), window, 0.9, ratio)
    masked = np.ones((n, int(np.prod(window))), bool)
    np.put_along_axis(masked, decoded, False, axis=1)
    return masked.reshape(n, window[0], -1)


def pretrain_frame_ids(num_frames, offset0, clip_len, step):
    return sampling.window_frames(np.array([offset0]), np.array([num_frames]), clip_len, np.array([float(step)]))[0].tolist()


def pretrain_offset_range(num_frames, clip_len, step):
    return 0, sampling.start_range(np.array([num_frames]), clip_len, np.array([float(step)]))[0]


def finetune_val_ids(num_frames, clip_len, step):
    return sampling.validation_frames(num_frames, clip_len, step)


def finetune_test_clips(num_frames, clip_len, step, segments):
    return sampling.segment_frames(num_frames, clip_len, step, segments)


def crop_sizes(w, h, size):
    sides = crops.crop_sides(crops.largest_box(np.array([w]), np.array([h]), (size, size)), (size, size))[0]
    return [(int(sides[i, 0]), int(sides[j, 1])) for i, j in crops.PAIRS]


def crop_offsets(w, h, cw, ch):
    n = len(crops.ANCHORS)
    boxes = np.tile([cw, ch], (n, 1))
    return [tuple(xy) for xy in crops.anchor_offsets(np.full(n, w), np.full(n, h), boxes, crops.ANCHORS).tolist()]


# ------------------------------------------------------------------------------------------------------------- helpers


def run_pretrain(model, clip, mask, decode_mask):
    """Predictions and targets of the decoded tokens in index order, loss and gradients, from a normalised clip."""
    views, visible_idx, decoded_idx, loss_weight = step_inputs(clip, mask, decode_mask)
    loss = pixel_loss(model, views, visible_idx, decoded_idx, loss_weight)
    loss.backward()
    with torch.no_grad():
        latent = model.encode(views, visible_idx)
        prediction = model.decode(latent, visible_idx, decoded_idx)
        patches = gather_patches(views, decoded_idx, model.config.patch_size, model.config.tubelet_size)
    return {
        "encoder": latent,
        "decoder": prediction,
        "targets": pixel_targets(patches, prediction.dtype),
        "loss": loss.detach(),
        "grads": {name: p.grad for name, p in model.named_parameters()},
    }


def step_inputs(clip, mask, decode_mask):
    """Normalised clip and boolean masks (True = masked) -> what the model takes; every decoded token gets a weight."""
    B = len(mask)
    kept = mask if decode_mask is None else ~decode_mask
    visible_idx = (~mask).nonzero()[:, 1].view(B, -1)
    decoded_idx = kept.nonzero()[:, 1].view(B, -1)
    return to_uint8(clip), visible_idx, decoded_idx, mask.gather(1, decoded_idx).float()


def to_uint8(clip: Tensor) -> Tensor:
    """Normalised clip (B, 3, T, H, W) -> the views (B, T, H, W, 3) it was made of; asserts that they give it back exactly."""
    x = clip.float().permute(0, 2, 3, 4, 1)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    views = ((x * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).contiguous()
    assert torch.equal((views.float() / 255 - mean) / std, x), "the clip was not made of 8-bit pixels"
    return views


def pretrain_config(cfg):
    """Official PretrainVisionTransformer arguments -> ModelConfig, or None for what is not supported."""
    names = {
        "img_size": "input_size",
        "all_frames": "num_frames",
        "patch_size": "patch_size",
        "tubelet_size": "tubelet_size",
        "encoder_embed_dim": "encoder_dim",
        "encoder_depth": "encoder_depth",
        "encoder_num_heads": "encoder_heads",
        "decoder_embed_dim": "decoder_dim",
        "decoder_depth": "decoder_depth",
        "decoder_num_heads": "decoder_heads",
        "mlp_ratio": "mlp_ratio",
    }
    return config_from(cfg, names)


def finetune_config(cfg):
    """Official VisionTransformer arguments -> ModelConfig, or None for what is not supported."""
    names = {
        "img_size": "input_size",
        "all_frames": "num_frames",
        "patch_size": "patch_size",
        "tubelet_size": "tubelet_size",
        "embed_dim": "encoder_dim",
        "depth": "encoder_depth",
        "num_heads": "encoder_heads",
        "mlp_ratio": "mlp_ratio",
    }
    return config_from(cfg, names)


def config_from(cfg, names):
    for key, value in cfg.items():
        known = key in names or key in IGNORED
        if not known and (value != DEFAULTS[key] if key in DEFAULTS else value):
            return None
    return ModelConfig(**{ours: cfg[official] for official, ours in names.items() if official in cfg})


def meta_model(kind, arch, num_classes):
    config = MODELS[ARCHITECTURES[arch]]
    with torch.device("meta"):
        return VideoMAE(config) if kind == "pretrain" else VideoClassifier(config, num_classes)
