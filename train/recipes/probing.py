"""Recipes of linear probing. The docstring says where each value is from. Learning rates are per 256 views."""

from dataclasses import replace

from model.config import MODELS
from pipeline.sampling import PlainViews
from train.config import ComputeConfig
from train.recipes.book import RecipeBook
from train.stages.probing import ProbeConfig, sgd

SSV2_TRAIN_CLIPS, SSV2_CLASSES = 168_913, 174


def tiny() -> ProbeConfig:
    """On what `tiny` pre-trains: eight frames of 64 px, 400 steps of 16 views, six heads. Everything here is ours."""
    return ProbeConfig(
        model=MODELS["tiny"],
        steps=400,
        epochs=None,
        lrs=(1.0, 3.0, 10.0),
        weight_decays=(0.0, 1e-3),
        views=PlainViews(views_per_step=16, views_per_clip=2),
        compute=ComputeConfig(precision="fp32"),
        log_every=25,
        save_every=100,
        expected_clips=64,
        expected_classes=8,
    )


def vit_b_ssv2() -> ProbeConfig:
    """ViT-B on Something-Something V2 (VideoMAE V1, Table 10: SGD with lr 0.1, momentum 0.9 and no weight decay, batch 1024,
    cosine decay, 100 epochs, 10 of warm-up, MultiScaleCrop; no flips, by appendix B). Ours: the end of the cosine, 0, and
    frames from segments of the whole clip, as in fine-tuning there; no code of it was published."""
    return ProbeConfig(
        model=MODELS["vit-b"], epochs=100, frames="tsn", expected_clips=SSV2_TRAIN_CLIPS, expected_classes=SSV2_CLASSES
    )


def vit_s_own() -> ProbeConfig:
    """ViT-S on a dataset of one's own, on one GPU. Ours; see vit-b-own."""
    return replace(vit_b_own(), model=MODELS["vit-s"])


def vit_b_own() -> ProbeConfig:
    """ViT-B on a dataset of one's own, on one GPU. Ours: Table 10's SGD, but 256 views a step, two views of a clip, 30 epochs,
    flips, and ten heads: which learning rate is best depends on the features' scale."""
    return ProbeConfig(
        model=MODELS["vit-b"],
        epochs=30,
        lrs=(0.03, 0.1, 0.3, 1.0, 3.0),
        weight_decays=(0.0, 1e-4),
        flip=0.5,
        views=PlainViews(views_per_step=256, views_per_clip=2),
        optim=sgd(),
        expected_clips=10_000,
        expected_classes=100,
    )


def vit_l_own() -> ProbeConfig:
    """ViT-L on a dataset of one's own, on one GPU. Ours; see vit-b-own."""
    return replace(vit_b_own(), model=MODELS["vit-l"])


def vit_h_own() -> ProbeConfig:
    """ViT-H on a dataset of one's own, on one GPU. Ours; see vit-b-own."""
    return replace(vit_b_own(), model=MODELS["vit-h"])


def vit_g_own() -> ProbeConfig:
    """ViT-g on a dataset of one's own, on one GPU. Ours; see vit-b-own."""
    return replace(vit_b_own(), model=MODELS["vit-g"])


CHAPTERS = {
    "your own data": (tiny, vit_s_own, vit_b_own, vit_l_own, vit_h_own, vit_g_own),
    "VideoMAE (V1)": (vit_b_ssv2,),
}
RECIPES = RecipeBook(CHAPTERS)
