"""Recipes of linear and attentive probing. The docstring says where each value is from. Learning rates are per 256 views."""

from dataclasses import replace

from model.config import MODELS
from pipeline.sampling import PlainViews
from train.config import ComputeConfig, OptimConfig
from train.recipes.book import RecipeBook
from train.stages.probing import ProbeConfig, sgd

SSV2_TRAIN_CLIPS, SSV2_CLASSES = 168_913, 174
LRS, WEIGHT_DECAYS = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (0.01, 0.1, 0.4, 0.8)  # V-JEPA 2's 20; at its batch of 256


def adamw() -> OptimConfig:
    """V-JEPA 2's evaluation: a cosine from the peak to 0, no warm-up."""
    return OptimConfig(base_lr=1e-3, base_min_lr=0.0, warmup_share=0.0, betas=(0.9, 0.999))


def micro() -> ProbeConfig:
    """On what `micro` pre-trains, as `tiny`. Everything here is ours."""
    return replace(tiny(), model=MODELS["micro"], views=PlainViews(views_per_step=32, views_per_clip=2), save_every=500)


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


def tiny_attentive() -> ProbeConfig:
    """As `tiny`, with six attentive heads of depth 1. Everything here is ours, but AdamW and its schedule, V-JEPA 2's."""
    return replace(tiny(), probe="attentive", lrs=(5e-3, 2e-2, 5e-2), weight_decays=(0.01, 0.4), optim=adamw())


def vit_l_ssv2_attentive() -> ProbeConfig:
    """ViT-L on Something-Something V2 as V-JEPA 2's evaluation (configs/eval/vitl/ssv2.yaml there): three blocks of
    self-attention and one of cross-attention with 16 heads, 20 of them in one pass, of the learning rates 5e-3 to 1e-4 and the
    weight decays 0.01 to 0.8, AdamW that decays everything, a cosine to 0 without warm-up, batch 256, 20 epochs, random resized
    crops, no flips. There, RandAugment and erasing (0.25) come on top, views are of 256 px, and the tokens of two windows of a
    clip go into the probe together. Ours: no such augmentation, views of 224 px, and one window, of segments of the whole
    clip, as in fine-tuning."""
    return ProbeConfig(
        model=MODELS["vit-l"],
        probe="attentive",
        probe_depth=4,
        lrs=LRS,
        weight_decays=WEIGHT_DECAYS,
        epochs=20,
        frames="tsn",
        crop="random_resized",
        views=PlainViews(views_per_step=256, views_per_clip=1),
        optim=adamw(),
        expected_clips=SSV2_TRAIN_CLIPS,
        expected_classes=SSV2_CLASSES,
    )


def vit_b_ssv2_attentive() -> ProbeConfig:
    """ViT-B on Something-Something V2. Ours: as vit-l-ssv2-attentive, but of depth 1, which costs next to nothing beside the
    encoder (--probe-depth 4 is the other), and with the encoder's 12 heads."""
    return replace(vit_l_ssv2_attentive(), model=MODELS["vit-b"], probe_depth=1)


def vit_b_own_attentive() -> ProbeConfig:
    """ViT-B on a dataset of one's own, on one GPU. Ours: V-JEPA 2's 20 heads and schedule (see vit-l-ssv2-attentive), of depth
    1, 30 epochs, two views of a clip, flips."""
    own = {name: getattr(vit_b_own(), name) for name in ("epochs", "flip", "views", "expected_clips", "expected_classes")}
    return replace(vit_b_ssv2_attentive(), frames="linspace", **own)


def vit_l_own_attentive() -> ProbeConfig:
    """ViT-L on a dataset of one's own, on one GPU. Ours; see vit-b-own-attentive."""
    return replace(vit_b_own_attentive(), model=MODELS["vit-l"])


def vit_g_own_attentive() -> ProbeConfig:
    """ViT-g on a dataset of one's own, on one GPU. Ours; see vit-b-own-attentive."""
    return replace(vit_b_own_attentive(), model=MODELS["vit-g"])


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
    "your own data": (micro, tiny, vit_s_own, vit_b_own, vit_l_own, vit_h_own, vit_g_own),
    "your own data, attentive": (tiny_attentive, vit_b_own_attentive, vit_l_own_attentive, vit_g_own_attentive),
    "VideoMAE (V1)": (vit_b_ssv2,),
    "V-JEPA 2's evaluation": (vit_l_ssv2_attentive, vit_b_ssv2_attentive),
}
RECIPES = RecipeBook(CHAPTERS)
