"""Recipes of fine-tuning. The docstring says which table of a paper the values are from; what `@official` names is the official
launch script, and what that has otherwise (`--official-script`). Where a paper is silent, its script speaks: erasing, the scale
of a new head and the least learning rate are of no table. So does it on RandAugment, which is "rand-m7-n4-mstd0.5-inc1": the
tables have "RandAug (0, 0.5)" in V2 (9, 11) and "RandAug (9, 0.5)" in V1 (9).

The learning rates of `finetuning` are per 256 clips, as in tables and scripts, those of its configuration per 256 *views*.
"Test" is what the papers' figures were taken with: `tubecell evaluate RUN --views 5x3`, and `--sparse` for Something-Something.
"""

from dataclasses import replace
from typing import Any, NamedTuple

from model.config import MODELS, ModelConfig
from pipeline.sampling import PlainViews
from train.augmentation import AugmentConfig
from train.config import ComputeConfig, OptimConfig
from train.recipes.book import RecipeBook, official
from train.stages.finetuning import FinetuneConfig

Column = dict[str, Any]  # of a table, in the terms of `finetuning`


class Labelled(NamedTuple):
    """A dataset."""

    classes: int
    clips: int
    """Of its official training list; in a dry run without --data."""


K400, K600, K710 = Labelled(400, 240_436), Labelled(600, 366_006), Labelled(710, 658_340)
SSV1, SSV2 = Labelled(174, 86_017), Labelled(174, 168_913)
UCF101, HMDB51 = Labelled(101, 9_537), Labelled(51, 3_570)  # the first split


def finetuning(
    model: str | ModelConfig,
    data: Labelled,
    *,
    clips: int,
    lr: float,
    epochs: int,
    warmup: int = 5,
    min_lr: float = 1e-6,
    views: int = 2,
    weight_decay: float = 0.05,
    clip_grad: float | None = None,
    sampling: str = "manifest",
    **others: Any,
) -> FinetuneConfig:
    """In the terms of tables and scripts: clips a step, learning rates per 256 of them, views of each, epochs of warm-up."""
    sizes = MODELS[model] if isinstance(model, str) else model
    return FinetuneConfig(
        model=sizes,
        epochs=epochs,
        views=PlainViews(views_per_step=clips * views, views_per_clip=views, sampling=sampling),
        optim=OptimConfig(
            base_lr=lr / views,
            base_min_lr=min_lr / views,
            warmup_share=warmup / epochs,
            weight_decay=weight_decay,
            betas=(0.9, 0.999),
            clip_grad=clip_grad,
        ),
        expected_clips=data.clips,
        expected_classes=data.classes,
        **others,
    )


def something(model: str, data: Labelled, **values: Any) -> FinetuneConfig:
    """Something-Something: a frame of each of 16 segments; no view is mirrored, whatever the sources are called."""
    return finetuning(model, data, frames="tsn", augment=AugmentConfig(flip=0.0), **values)


def larger(model: str, num_frames: int, input_size: int) -> ModelConfig:
    """A model for longer and larger views than 16 x 224², whose position table is interpolated to them."""
    sizes = MODELS[model]
    return replace(
        sizes,
        num_frames=num_frames,
        input_size=input_size,
        positions_size=sizes.input_size,
        positions_frames=sizes.num_frames,
    )


# ---------------------------------------------------------------------------------------------------------------- ours


def micro() -> FinetuneConfig:
    """0.2 M parameters on 8 frames of 32 px (what `micro` pre-trains): 400 steps of 32 views. Everything here is ours. A model
    as small as that has noise enough in the crops, and what moves to the left must not be mirrored. It begins to tell classes
    apart all at once: after 150 steps so, after 250 with a head of 0.001 or rates that decay by layer; with two views of a clip
    not at all within 400, of 32 views each (seed 1 of `tubecell learning`: 23 % instead of 67)."""
    return FinetuneConfig(
        model=MODELS["micro"],
        steps=400,
        epochs=None,
        views=PlainViews(views_per_step=32, views_per_clip=1),
        optim=OptimConfig(base_lr=2.4e-2, base_min_lr=2.4e-4, betas=(0.9, 0.999), clip_grad=1.0),
        augment=AugmentConfig(randaugment="", flip=0.0, erasing=0.0, mixup=0.0, cutmix=0.0),
        frames="stride",
        crop="multi_scale",
        drop_path=0.0,
        head_scale=0.1,
        layer_decay=1.0,
        compute=ComputeConfig(precision="fp32"),
        log_every=50,
        save_every=500,
        expected_clips=256,
        expected_classes=8,
    )


def tiny() -> FinetuneConfig:
    """0.6 M parameters on 8 frames of 64 px (what `tiny` pre-trains): 400 steps of 16 views. Everything here is ours. Without
    RandAugment: with it, a smaller one still told 5 of 12 clips apart after 150 steps, and 10 or more without."""
    return FinetuneConfig(
        model=MODELS["tiny"],
        steps=400,
        epochs=None,
        views=PlainViews(views_per_step=16, views_per_clip=2),
        optim=OptimConfig(base_lr=3e-2, base_min_lr=3e-4, betas=(0.9, 0.999), clip_grad=1.0),
        augment=AugmentConfig(randaugment=""),
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
    return finetuning(model, Labelled(400, 10_000), clips=32, lr=7e-4, epochs=50)


# ----------------------------------------------------------------------------------------- VideoMAE V2, not after K710

H_11: Column = {"clips": 128, "lr": 1e-3, "epochs": 40, "drop_path": 0.2, "head_dropout": 0.5, "layer_decay": 0.8}
G_11: Column = {
    "clips": 128,
    "lr": 1e-3,
    "epochs": 35,
    "drop_path": 0.3,
    "layer_decay": 0.9,
    "weight_decay": 0.1,
    "clip_grad": 5.0,
}
B_SCRIPT: Column = {"clips": 512, "lr": 7e-4, "epochs": 90, "drop_path": 0.1, "layer_decay": 0.75}


@official("v2/finetune/vit_b_k710_ft")
def vit_b_k710() -> FinetuneConfig:
    """ViT-B on K710 (script, 32 GPUs; no table has it). Test: 5x3."""
    return finetuning("vit-b", K710, **B_SCRIPT)


@official("v2/finetune/vit_h_k710_ft")
def vit_h_k710() -> FinetuneConfig:
    """ViT-H on K710 (Table 11, post-pre-training; so the script, on 32 GPUs). Test: 5x3."""
    return finetuning("vit-h", K710, **H_11)


@official("v2/finetune/vit_g_k710_ft", clips=96)
def vit_g_k710(**script: Any) -> FinetuneConfig:
    """ViT-g on K710 (Table 11, post-pre-training; script: 32 GPUs x 3 clips). Test: 5x3."""
    return finetuning("vit-g", K710, **G_11 | script)


@official("v2/finetune/vit_b_k400_ft")
def vit_b_k400() -> FinetuneConfig:
    """ViT-B on Kinetics-400 (script, 32 GPUs; Table 3 tells the figures alone). Test: 5x3. Users lost accuracy with it from the
    first epoch on (issues 13 and 38 of its repository)."""
    return finetuning("vit-b", K400, **B_SCRIPT)


@official("v2/finetune/vit_l_k400_ft")
def vit_l_k400() -> FinetuneConfig:
    """ViT-L on Kinetics-400 (script, 32 GPUs; Table 3 tells the figures alone). Test: 5x3."""
    return finetuning("vit-l", K400, clips=192, lr=2e-3, epochs=35, drop_path=0.2, layer_decay=0.75)


@official("v2/finetune/vit_h_k400_ft")
def vit_h_k400() -> FinetuneConfig:
    """ViT-H on Kinetics-400 (Table 11, which "also works for fine-tuning directly"; so the script, on 32 GPUs). Test: 5x3."""
    return finetuning("vit-h", K400, **H_11)


@official("v2/finetune/vit_g_k400_ft", clips=192, epochs=30, drop_path=0.2, clip_grad=None)
def vit_g_k400(**script: Any) -> FinetuneConfig:
    """ViT-g on Kinetics-400 (Table 11, which "also works for fine-tuning directly"; script: 64 GPUs x 3 clips, fewer epochs, a
    smaller drop path, no clipping). Test: 5x3."""
    return finetuning("vit-g", K400, **G_11 | script)


@official("v2/finetune/vit_h_k600_ft", clips=4)
def vit_h_k600(**script: Any) -> FinetuneConfig:
    """ViT-H on Kinetics-600 (Table 11; the script has the same, but 1 GPU x 4 clips, where its siblings have 32). Test:
    5x3."""
    return finetuning("vit-h", K600, **H_11 | script)


def vit_g_k600() -> FinetuneConfig:
    """ViT-g on Kinetics-600 (Table 11, which "also works for fine-tuning directly"; no script has it). Test: 5x3."""
    return finetuning("vit-g", K600, **G_11)


@official("v2/finetune/vit_b_ssv2_ft")
def vit_b_ssv2() -> FinetuneConfig:
    """ViT-B on Something-Something V2 (script, 16 GPUs; Table 4 tells the figures alone). Test: 2x3, sparse."""
    return something("vit-b", SSV2, clips=256, lr=2e-3, epochs=25, drop_path=0.1, layer_decay=0.65)


@official("v2/finetune/vit_l_ssv2_ft")
def vit_l_ssv2() -> FinetuneConfig:
    """ViT-L on Something-Something V2 (script, 32 GPUs; Table 4 tells the figures alone). Test: 2x3, sparse."""
    return something("vit-l", SSV2, clips=192, lr=5e-4, epochs=20, drop_path=0.2, layer_decay=0.75)


@official("v2/finetune/vit_h_ssv2_ft")
def vit_h_ssv2() -> FinetuneConfig:
    """ViT-H on Something-Something V2 (script, 32 GPUs; Table 4 tells the figures alone). Test: 2x3, sparse."""
    return something("vit-h", SSV2, clips=128, lr=5e-4, epochs=20, drop_path=0.2, layer_decay=0.8)


SOMETHING_9: Column = {"clips": 96, "lr": 3e-4, "epochs": 10, "drop_path": 0.35, "head_dropout": 0.5, "layer_decay": 0.9}


@official("v2/finetune/vit_g_ssv2_ft", epochs=20, drop_path=0.25, head_dropout=0.0)
def vit_g_ssv2(**script: Any) -> FinetuneConfig:
    """ViT-g on Something-Something V2 (Table 9; script, 32 GPUs: twice the epochs, a smaller drop path, no dropout). Test: 2x3,
    sparse."""
    return something("vit-g", SSV2, **SOMETHING_9 | script)


def vit_g_ssv1() -> FinetuneConfig:
    """ViT-g on Something-Something V1 (Table 9, whose column "Sth-Sth" names no version; no script has it). Test: 2x3,
    sparse."""
    return something("vit-g", SSV1, **SOMETHING_9)


# --------------------------------------------------------------------------------------------- VideoMAE V2, after K710

KINETICS_9: Column = {"clips": 32, "lr": 1e-5, "epochs": 3, "warmup": 0, "drop_path": 0.3, "head_dropout": 0.5}
LARGER_9: Column = KINETICS_9 | {"lr": 1e-4, "epochs": 5, "drop_path": 0.35}
G: Column = {"layer_decay": 0.9}
H: Column = {"layer_decay": 0.8}


@official("v2/finetune/vit_g_k710_it_k400_ft", clips=96, warmup=1, drop_path=0.25, head_dropout=0.0, weight_decay=0.1)
def vit_g_k710_k400(**script: Any) -> FinetuneConfig:
    """ViT-g on Kinetics-400 after K710 (Table 9; script, 32 GPUs: three times the clips, an epoch of warm-up, more decay, less
    drop path, no dropout). Test: 5x3."""
    return finetuning("vit-g", K400, **KINETICS_9 | G | script)


@official("v2/finetune/vit_g_k710_it_k600_ft", clips=96, warmup=1, drop_path=0.25, head_dropout=0.0, weight_decay=0.1)
def vit_g_k710_k600(**script: Any) -> FinetuneConfig:
    """ViT-g on Kinetics-600 after K710 (Table 9; script, 32 GPUs: as that for Kinetics-400). Test: 5x3."""
    return finetuning("vit-g", K600, **KINETICS_9 | G | script)


def vit_g_k710_k400_64x266() -> FinetuneConfig:
    """ViT-g on Kinetics-400, 64 x 266² (Table 9; the last row of ours in Table 14). From the weights of vit-g-k710 or
    vit-g-k710-k400. Test: 2x3."""
    return finetuning(larger("vit-g", 64, 266), K400, **LARGER_9 | G)


def vit_g_k710_k600_64x266() -> FinetuneConfig:
    """ViT-g on Kinetics-600, 64 x 266² (Table 9; Table 15). From the weights of vit-g-k710 or vit-g-k710-k600. Test: 2x3."""
    return finetuning(larger("vit-g", 64, 266), K600, **LARGER_9 | G)


def vit_h_k710_k400() -> FinetuneConfig:
    """ViT-H on Kinetics-400 after K710 (a row of Table 14). Ours: Table 9, which is of ViT-g, with the layer decay that Table
    11 has for ViT-H. Test: 5x3."""
    return finetuning("vit-h", K400, **KINETICS_9 | H)


def vit_h_k710_k600() -> FinetuneConfig:
    """ViT-H on Kinetics-600 after K710 (a row of Table 15). Ours, as vit-h-k710-k400. Test: 5x3."""
    return finetuning("vit-h", K600, **KINETICS_9 | H)


def vit_h_k710_k400_64x288() -> FinetuneConfig:
    """ViT-H on Kinetics-400, 64 x 288² (a row of Table 14, which has the TFLOPs of 32 x 384²). Ours, as vit-h-k710-k400. Test:
    4x3."""
    return finetuning(larger("vit-h", 64, 288), K400, **LARGER_9 | H)


def vit_h_k710_k600_32x384() -> FinetuneConfig:
    """ViT-H on Kinetics-600, 32 x 384² (a row of Table 15, which has the TFLOPs of 64 x 288²). Ours, as vit-h-k710-k400. Test:
    4x3."""
    return finetuning(larger("vit-h", 32, 384), K600, **LARGER_9 | H)


SMALL_9: Column = {"clips": 24, "drop_path": 0.35, "head_dropout": 0.5, "layer_decay": 0.9}


@official("v2/finetune/vit_g_k710_it_ucf101_ft")
def vit_g_k710_ucf101() -> FinetuneConfig:
    """ViT-g on UCF101 after K710 (Table 9, whose figures are Table 13's; so the script, on 8 GPUs). Test: 5x3."""
    return finetuning("vit-g", UCF101, lr=1e-3, epochs=50, **SMALL_9)


@official("v2/finetune/vit_g_k710_it_hmdb51_ft")
def vit_g_k710_hmdb51() -> FinetuneConfig:
    """ViT-g on HMDB51 after K710 (Table 9, whose figures are Table 13's; so the script, on 8 GPUs, at stride 2). Test: 5x3."""
    return finetuning("vit-g", HMDB51, lr=5e-4, epochs=15, sampling="stride:2", **SMALL_9)


# ------------------------------------------------------------------------------------------------------- VideoMAE (V1)

B_9: Column = {"clips": 512, "lr": 1e-3, "drop_path": 0.1, "layer_decay": 0.75}
L_9: Column = {"clips": 256, "lr": 1e-3, "drop_path": 0.2, "layer_decay": 0.75}
V1_SCRIPT = "v1/{}/videomae_vit_{}_patch16_224_tubemasking_ratio_{}_epoch_{}/finetune".format


@official(V1_SCRIPT("kinetics", "small", 0.9, 1600))
def v1_vit_s_k400() -> FinetuneConfig:
    """ViT-S on Kinetics-400 (V1's script, 32 GPUs; no table has it). Test: 5x3."""
    return finetuning("vit-s", K400, clips=384, lr=5e-4, epochs=150, drop_path=0.1, layer_decay=0.75)


@official(V1_SCRIPT("kinetics", "base", 0.9, 1600), clips=384, lr=5e-4, epochs=75)
def v1_vit_b_k400(**script: Any) -> FinetuneConfig:
    """ViT-B on Kinetics-400, after 1600 epochs (V1's Table 9, with the repeated augmentation that its appendix B has
    for the figures of Table 12; script, 64 GPUs: fewer clips and epochs, a lower lr). Test: 5x3."""
    return finetuning("vit-b", K400, **B_9 | {"epochs": 100} | script)


@official(V1_SCRIPT("kinetics", "base", 0.9, 800))
def v1_vit_b_k400_800e() -> FinetuneConfig:
    """ViT-B on Kinetics-400, after 800 epochs (V1's Table 9, as it is; so the script, on 64 GPUs). Test: 5x3."""
    return finetuning("vit-b", K400, views=1, epochs=100, **B_9)


@official(V1_SCRIPT("kinetics", "large", 0.9, 1600), clips=128, lr=2e-3, epochs=35, drop_path=0.1)
def v1_vit_l_k400(**script: Any) -> FinetuneConfig:
    """ViT-L on Kinetics-400 (V1's Table 9, with the repeated augmentation of Table 12; script, 64 GPUs: fewer clips and epochs,
    a higher lr, a smaller drop path). Test: 5x3."""
    return finetuning("vit-l", K400, **L_9 | {"epochs": 60} | script)


@official(V1_SCRIPT("kinetics", "huge", 0.9, 1600))
def v1_vit_h_k400() -> FinetuneConfig:
    """ViT-H on Kinetics-400 (V1's script, 64 GPUs; no table has it). Test: 5x3."""
    values: Column = {"drop_path": 0.2, "head_dropout": 0.5, "layer_decay": 0.75, "min_lr": 1e-5}
    return finetuning("vit-h", K400, clips=512, lr=1e-3, epochs=50, **values)


@official(V1_SCRIPT("ssv2", "small", 0.9, 2400))
def v1_vit_s_ssv2() -> FinetuneConfig:
    """ViT-S on Something-Something V2 (V1's script, 32 GPUs; no table has it). Test: 2x3, sparse."""
    return something("vit-s", SSV2, clips=384, lr=1e-3, epochs=40, drop_path=0.1, layer_decay=0.7)


@official(V1_SCRIPT("ssv2", "base", 0.9, 2400), clips=384, lr=5e-4, epochs=30, views=2)
def v1_vit_b_ssv2(**script: Any) -> FinetuneConfig:
    """ViT-B on SSv2, after 2400 epochs (V1's Table 9; script, 64 GPUs: two views, fewer clips and epochs, a lower
    lr). Test: 2x3, sparse."""
    return something("vit-b", SSV2, **B_9 | {"epochs": 40, "views": 1} | script)


@official(V1_SCRIPT("ssv2", "base", 0.9, 800), lr=5e-4, epochs=50)
def v1_vit_b_ssv2_800e(**script: Any) -> FinetuneConfig:
    """ViT-B on SSv2, after 800 epochs (V1's Table 9; script, 64 GPUs: a lower lr, more epochs). Test: 2x3, sparse."""
    return something("vit-b", SSV2, **B_9 | {"epochs": 40, "views": 1} | script)


def v1_vit_l_ssv2() -> FinetuneConfig:
    """ViT-L on Something-Something V2 (V1's Table 9; no script has it). Test: 2x3, sparse."""
    return something("vit-l", SSV2, views=1, epochs=40, **L_9)


SMALL_B: Column = {"clips": 128, "lr": 1e-3, "drop_path": 0.2, "head_dropout": 0.5, "layer_decay": 0.7, "min_lr": 1e-5}


@official(V1_SCRIPT("ucf101", "base", 0.75, 3200), lr=5e-4)
def v1_vit_b_ucf101(**script: Any) -> FinetuneConfig:
    """ViT-B on UCF101 (V1's appendix B for clips, lr and epochs, the rest from the script, on 8 GPUs, whose lr is half as high;
    Table 13). Test: 5x3."""
    return finetuning("vit-b", UCF101, epochs=100, **SMALL_B | script)


def v1_vit_l_ucf101() -> FinetuneConfig:
    """ViT-L on UCF101. Ours: V1 has ViT-B alone, whose values these are. Test: 5x3."""
    return finetuning("vit-l", UCF101, epochs=100, **SMALL_B)


def v1_vit_b_hmdb51() -> FinetuneConfig:
    """ViT-B on HMDB51 at stride 2 (V1's appendix B for clips, lr, epochs and stride; the rest, of which no script tells, as for
    UCF101; Table 13). Test: 5x3."""
    return finetuning("vit-b", HMDB51, epochs=60, sampling="stride:2", **SMALL_B)


def v1_vit_l_hmdb51() -> FinetuneConfig:
    """ViT-L on HMDB51 at stride 2. Ours: V1 has ViT-B alone, whose values these are. Test: 5x3."""
    return finetuning("vit-l", HMDB51, epochs=60, sampling="stride:2", **SMALL_B)


CHAPTERS = {
    "your own data": (micro, tiny, vit_s_own, vit_b_own),
    "VideoMAE V2, from pre-training": (
        *(vit_b_k710, vit_h_k710, vit_g_k710),
        *(vit_b_k400, vit_l_k400, vit_h_k400, vit_g_k400, vit_h_k600, vit_g_k600),
        *(vit_b_ssv2, vit_l_ssv2, vit_h_ssv2, vit_g_ssv2, vit_g_ssv1),
    ),
    "VideoMAE V2, from a K710 recipe": (
        *(vit_h_k710_k400, vit_g_k710_k400, vit_h_k710_k600, vit_g_k710_k600),
        *(vit_h_k710_k400_64x288, vit_g_k710_k400_64x266, vit_h_k710_k600_32x384, vit_g_k710_k600_64x266),
        *(vit_g_k710_ucf101, vit_g_k710_hmdb51),
    ),
    "VideoMAE (V1), from the pre-training recipe of the same name": (
        *(v1_vit_s_k400, v1_vit_b_k400, v1_vit_b_k400_800e, v1_vit_l_k400, v1_vit_h_k400),
        *(v1_vit_s_ssv2, v1_vit_b_ssv2, v1_vit_b_ssv2_800e, v1_vit_l_ssv2),
        *(v1_vit_b_ucf101, v1_vit_l_ucf101, v1_vit_b_hmdb51, v1_vit_l_hmdb51),
    ),
}
RECIPES = RecipeBook(CHAPTERS)
