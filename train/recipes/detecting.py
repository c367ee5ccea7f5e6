"""Recipes of action detection. The docstring says where each value is from. Learning rates are per 256 key frames, each seen in
one view; batches are of key frames.

VideoMAE's repository for AVA says "learning rate 5e-4 for 256, layer decay 0.8, drop path 0.2, 20 epochs" of its ViT-H on 64
GPUs of 2 key frames; what V2 changed stands in its Table 12. Of both: 16 frames at stride 4 around the key frame, annotated
boxes in training, in tests those that a detector of people gives 0.8 at least.

Ours, in all recipes here: views are normalised as in pre-training, by ImageNet's mean and deviation, where that repository
takes (122.77, 115.95, 102.98) and 57.375; no colour is shaken, where it shakes hue, saturation and value; and in training the
short side of a frame is drawn from 256 to 320 pixels, where it is 256 there. (Table 12 names random scales and flips alone.)
"""

from typing import Any

from model.config import MODELS
from pipeline.sampling import PlainViews
from train.config import ComputeConfig, OptimConfig
from train.recipes.book import RecipeBook
from train.stages.detecting import DetectConfig

AVA = 210_795  # 235 movies x 897 seconds, from 902 to 1798: key frames of training before any is left out


def detecting(
    model: str, *, lr: float, layer_decay: float, drop_path: float, epochs: int, warmup: int, batch: int = 128, **others: Any
) -> DetectConfig:
    """AdamW with a cosine to 1e-6 (ours: no table tells), no clipping."""
    return DetectConfig(
        model=MODELS[model],
        epochs=epochs,
        drop_path=drop_path,
        layer_decay=layer_decay,
        views=PlainViews(views_per_step=batch, views_per_clip=1),
        optim=OptimConfig(base_lr=lr, base_min_lr=1e-6, warmup_share=warmup / epochs, betas=(0.9, 0.999)),
        **{"expected_clips": AVA} | others,
    )


def tiny() -> DetectConfig:
    """0.6 M parameters on 8 frames of 64 px (what `tiny` pre-trains): 300 steps of 8 key frames, whole frames of 64 px in
    evaluations. Everything here is ours."""
    return DetectConfig(
        model=MODELS["tiny"],
        steps=300,
        epochs=None,
        short_sides=(64, 72),
        evaluate_sides=(64, 128),
        drop_path=0.0,
        head_scale=1.0,
        views=PlainViews(views_per_step=8, views_per_clip=1),
        optim=OptimConfig(base_lr=6e-2, base_min_lr=6e-4, betas=(0.9, 0.999), clip_grad=1.0),
        compute=ComputeConfig(precision="fp32"),
        log_every=25,
        save_every=100,
        expected_clips=64,
        expected_classes=3,
    )


def vit_b_own() -> DetectConfig:
    """ViT-B on key frames of one's own, on one GPU. Ours: the values of vit-b-ava, but 16 key frames a step."""
    return detecting("vit-b", lr=5e-4, layer_decay=0.75, drop_path=0.2, epochs=20, warmup=2, batch=16, expected_clips=10_000)


def vit_g_ava() -> DetectConfig:
    """ViT-g on AVA 2.2 (V2, Table 12: AdamW, lr 3e-4 for 256, weight decay 0.05, betas 0.9 and 0.999, batch 128, a cosine, 2 of
    10 epochs of warm-up, one view of each, drop path 0.3, flips, layer decay 0.9, no clipping). 42.6 mAP there, from an encoder
    fine-tuned on K710. Its authors: it overfits, the best weights are those of early epochs; so --evaluate-every."""
    return detecting("vit-g", lr=3e-4, layer_decay=0.9, drop_path=0.3, epochs=10, warmup=2)


def vit_g_ava_kinetics() -> DetectConfig:
    """ViT-g on AVA-Kinetics (V2, Table 12, which has one column of values for both: those of vit-g-ava). 43.9 mAP there. How
    many key frames its training takes is not told; reckoned is AVA alone."""
    return vit_g_ava()


def vit_h_ava() -> DetectConfig:
    """ViT-H on AVA 2.2 (VideoMAE's repository for it). 39.5 mAP there, from an encoder fine-tuned on Kinetics-400. Ours: 2
    epochs of warm-up."""
    return detecting("vit-h", lr=5e-4, layer_decay=0.8, drop_path=0.2, epochs=20, warmup=2)


def vit_l_ava() -> DetectConfig:
    """ViT-L on AVA 2.2. 37.0 mAP in VideoMAE's repository for it, from an encoder fine-tuned on Kinetics-400. Ours: the values
    of vit-h-ava."""
    return detecting("vit-l", lr=5e-4, layer_decay=0.8, drop_path=0.2, epochs=20, warmup=2)


def vit_b_ava() -> DetectConfig:
    """ViT-B on AVA 2.2. 31.8 mAP in VideoMAE's repository for it, from an encoder fine-tuned on Kinetics-400. Ours: the values
    of vit-h-ava, with the layer decay that ViT-B has in fine-tuning."""
    return detecting("vit-b", lr=5e-4, layer_decay=0.75, drop_path=0.2, epochs=20, warmup=2)


def vit_s_ava() -> DetectConfig:
    """ViT-S on AVA 2.2. 28.4 mAP in VideoMAE's repository for it, from an encoder fine-tuned on Kinetics-400. Ours: the values
    of vit-b-ava."""
    return detecting("vit-s", lr=5e-4, layer_decay=0.75, drop_path=0.2, epochs=20, warmup=2)


CHAPTERS = {
    "your own data": (tiny, vit_b_own),
    "VideoMAE V2": (vit_g_ava, vit_g_ava_kinetics),
    "VideoMAE (V1)": (vit_s_ava, vit_b_ava, vit_l_ava, vit_h_ava),
}
RECIPES = RecipeBook(CHAPTERS)
