"""Recipes of fine-tuning: a function per table of the papers, or per official script. The docstring says where each value is
from.

Learning rates are per 256 *views*; the official flags are per 256 clips, R = 2 times as much.
"""

from collections.abc import Callable

from model.config import MODELS, ModelConfig
from pipeline.sampling import PlainViews
from train.config import ComputeConfig, OptimConfig
from train.stages.finetuning import FinetuneConfig


def tiny() -> FinetuneConfig:
    """0.6 M parameters on 8 frames of 64 px, on what `tiny` pre-trains: 400 steps of 16 views. Everything here is ours."""
    return FinetuneConfig(
        model=MODELS["tiny"],
        steps=400,
        epochs=None,
        views=PlainViews(views_per_step=16, views_per_clip=2),
        optim=OptimConfig(base_lr=3e-2, base_min_lr=3e-4, betas=(0.9, 0.999), clip_grad=1.0),
        compute=ComputeConfig(precision="fp32"),
        log_every=25,
        save_every=100,
        expected_clips=64,
        expected_classes=8,
    )


def vit_s_own() -> FinetuneConfig:
    """ViT-S on a dataset of one's own, on one GPU. Ours; see vit-b-own."""
    return own(MODELS["vit-s"])


def vit_b_own() -> FinetuneConfig:
    """ViT-B on a dataset of one's own, on one GPU. Ours: the values of the official script for Kinetics-400 (lr 7e-4 per 256
    clips, minimum 1e-6, decay 0.05, drop path 0.1, layer decay 0.75, two views, mixup, CutMix, erasing), but 64 views a step,
    and 50 epochs, 5 of warm-up, instead of 90 on 32 GPUs."""
    return own(MODELS["vit-b"])


def own(model: ModelConfig) -> FinetuneConfig:
    """One model's."""
    return FinetuneConfig(
        model=model,
        epochs=50,
        views=PlainViews(views_per_step=64, views_per_clip=2),
        optim=OptimConfig(base_lr=3.5e-4, base_min_lr=5e-7, betas=(0.9, 0.999), warmup_share=0.1),
        expected_clips=10_000,
    )


MAKERS = tiny, vit_s_own, vit_b_own
RECIPES: dict[str, Callable[[], FinetuneConfig]] = {make.__name__.replace("_", "-"): make for make in MAKERS}
