"""Recipes of text-video retrieval. No paper of VideoMAE has one: everything here is ours. Learning rates are per 256 clips,
each seen in one view with one of its captions."""

from dataclasses import replace

from model.config import MODELS, ModelConfig
from pipeline.sampling import PlainViews
from train.config import ComputeConfig, OptimConfig
from train.recipes.book import RecipeBook
from train.stages.retrieving import RetrieveConfig


def micro() -> RetrieveConfig:
    """0.2 M parameters on 8 frames of 32 px (what `micro` pre-trains), and any small text tower: 400 steps of 32 clips."""
    return RetrieveConfig(
        model=MODELS["micro"],
        steps=400,
        epochs=None,
        views=PlainViews(views_per_step=32, views_per_clip=1),
        optim=OptimConfig(base_lr=2.4e-2, base_min_lr=2.4e-4, betas=(0.9, 0.98), clip_grad=1.0),
        frames="stride",
        width=64,
        text_lr=1.0,
        layer_decay=1.0,
        compute=ComputeConfig(precision="fp32"),
        log_every=50,
        save_every=500,
        expected_clips=256,
    )


def tiny() -> RetrieveConfig:
    """0.6 M parameters on 8 frames of 64 px (what `tiny` pre-trains), and any small text tower: 400 steps of 16 clips."""
    views = PlainViews(views_per_step=16, views_per_clip=1)
    return replace(micro(), model=MODELS["tiny"], views=views, log_every=25, save_every=100, expected_clips=64)


def vit_b_own() -> RetrieveConfig:
    """ViT-B on a captioned dataset of one's own, or MSR-VTT: 128 clips a step, 10 epochs, 1 of warm-up."""
    return own(MODELS["vit-b"])


def vit_l_own() -> RetrieveConfig:
    """ViT-L likewise."""
    return own(MODELS["vit-l"])


def own(model: ModelConfig) -> RetrieveConfig:
    """One model's. The rate is that of fine-tuning a ViT-B, halved, as a step has fewer clips."""
    return RetrieveConfig(
        model=model,
        epochs=10,
        views=PlainViews(views_per_step=128, views_per_clip=1),
        optim=OptimConfig(base_lr=3.5e-4, base_min_lr=1e-6, warmup_share=0.1, betas=(0.9, 0.98), clip_grad=1.0),
        drop_path=0.1,
        expected_clips=9_000,
    )


CHAPTERS = {"your own data": (micro, tiny, vit_b_own, vit_l_own)}
RECIPES = RecipeBook(CHAPTERS)
