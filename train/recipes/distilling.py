"""Recipes of distillation. VideoMAE V2 tells its settings in Table 16, and published no code of it: what the table is silent of
is as in `train/recipes/finetuning.py`. So are its rows "RandAug (0, 0.5)" and "MultiScaleCrop", which the tables of fine-tuning
have word for word, and their scripts otherwise.

Ours besides: one view of a clip (the table has no row of repeated augmentation), the end of the cosine, the temperature not
squared in the loss. Learning rates are per 256 clips. "Test" is what Table 17 was taken with.
"""

from dataclasses import fields, replace
from typing import Any

from model.config import MODELS
from train.augmentation import AugmentConfig
from train.config import OptimConfig
from train.recipes.book import RecipeBook
from train.recipes.finetuning import K710, SSV2, Column, finetuning, own
from train.recipes.finetuning import micro as micro_tuned
from train.recipes.finetuning import tiny as tuned
from train.stages.distilling import DistillConfig
from train.stages.finetuning import FinetuneConfig

TABLE_16: Column = {"views": 1, "epochs": 100, "warmup": 5, "drop_path": 0.1, "layer_decay": 0.75, "clip_grad": 1.0}
K710_16: Column = TABLE_16 | {"clips": 1024, "lr": 1e-3}
SSV2_16: Column = TABLE_16 | {"clips": 512, "lr": 5e-4, "frames": "tsn", "augment": AugmentConfig(never_flipped=())}


def as_student(config: FinetuneConfig, **values: Any) -> DistillConfig:
    """A model that is fine-tuned so, distilled so."""
    return DistillConfig(**{field.name: getattr(config, field.name) for field in fields(config)} | values)


def micro() -> DistillConfig:
    """0.2 M parameters on 8 frames of 32 px (what `micro` fine-tunes). Everything here is ours."""
    return as_student(micro_tuned(), expected_teacher="micro")


def tiny() -> DistillConfig:
    """0.6 M parameters on 8 frames of 64 px (what `tiny` fine-tunes): 400 steps of 16 views. Everything here is ours."""
    return as_student(tuned(), expected_teacher="tiny")


def vit_s_own() -> DistillConfig:
    """ViT-S on a dataset of one's own, on one GPU. Ours; see vit-b-own."""
    return as_student(replace(own(MODELS["vit-s"]), epochs=100, optim=own_optim()))


def vit_b_own() -> DistillConfig:
    """ViT-B on a dataset of one's own, on one GPU. Ours: as fine-tuning's vit-b-own, with Table 16's 100 epochs, 5 of warm-up,
    and gradients clipped at 1."""
    return as_student(replace(own(MODELS["vit-b"]), epochs=100, optim=own_optim()))


def own_optim() -> OptimConfig:
    """That of fine-tuning, for twice the epochs."""
    return replace(own(MODELS["vit-b"]).optim, warmup_share=5 / 100, clip_grad=1.0)


def vit_s_k710() -> DistillConfig:
    """ViT-S on K710 (Table 16; published weights, of no table). The teacher is ViT-g after vit-g-k710.
    Test: 5x3."""
    return as_student(finetuning("vit-s", K710, **K710_16))


def vit_b_k710() -> DistillConfig:
    """ViT-B on K710 (Table 16; 17). The teacher is ViT-g after vit-g-k710, and the student begins with ViT-B after it was
    fine-tuned on K710, too: vit-b-k710. Test: 5x3."""
    return as_student(finetuning("vit-b", K710, **K710_16))


def vit_s_ssv2() -> DistillConfig:
    """ViT-S on Something-Something V2 (Table 16; a student that the paper does not have). See vit-b-ssv2. Test: 2x3, sparse."""
    return as_student(finetuning("vit-s", SSV2, **SSV2_16))


def vit_b_ssv2() -> DistillConfig:
    """ViT-B on Something-Something V2 (Table 16; 17). The teacher is ViT-g after vit-g-ssv2. Views are mirrored, as the table
    has it: the teacher sees them so, and tells left from right. Test: 2x3, sparse."""
    return as_student(finetuning("vit-b", SSV2, **SSV2_16))


CHAPTERS = {
    "your own data": (micro, tiny, vit_s_own, vit_b_own),
    "VideoMAE V2, Table 16, from a fine-tuned ViT-g": (vit_s_k710, vit_b_k710, vit_s_ssv2, vit_b_ssv2),
}
RECIPES = RecipeBook(CHAPTERS)
