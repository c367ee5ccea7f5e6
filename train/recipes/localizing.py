"""Recipes of localizing actions in time. The docstring says where each value is from. Learning rates are per 256 views; a view
is a part of a video here, of which the public configurations' batch has 2 or 16."""

from dataclasses import replace

from model.localizer_config import LocalizerConfig
from model.segment_nms import Suppression
from pipeline.sampling import PlainViews
from train.config import ComputeConfig, OptimConfig
from train.localization.configuration import LocalizeConfig
from train.localization.inference import DecodeConfig
from train.localization.judging import JudgeConfig
from train.localization.sequences import SequenceConfig
from train.recipes.book import RecipeBook

WARMUP = 5  # epochs, which the public code counts besides
LAST_LR = 1e-8
THUMOS_VIDEOS, FINEACTION_VIDEOS = 200, 8_440


def adamw(lr: float, batch: int, epochs: int) -> OptimConfig:
    """As the public code: AdamW, a warm-up of five epochs, a cosine to 1e-8, gradients of a norm of 1 at most."""
    return OptimConfig(
        base_lr=lr * 256 / batch,
        base_min_lr=LAST_LR * 256 / batch,
        warmup_share=WARMUP / (WARMUP + epochs),
        weight_decay=0.05,
        betas=(0.9, 0.999),
        clip_grad=1.0,
    )


def tiny() -> LocalizeConfig:
    """A small network on sequences of 64 steps of any features 16 wide, 300 steps of 4 videos. Everything here is ours."""
    return LocalizeConfig(
        model=LocalizerConfig(input_dim=16, num_steps=64, dim=32, head_dim=32, num_levels=4, windows=(9,)),
        steps=300,
        epochs=None,
        ema=0.98,
        views=PlainViews(views_per_step=4, views_per_clip=1),
        optim=replace(adamw(2e-3, 4, 45), clip_grad=1.0),
        compute=ComputeConfig(precision="fp32"),
        log_every=25,
        save_every=100,
        expected_clips=64,
        expected_classes=4,
    )


def thumos14() -> LocalizeConfig:
    """ViT-g's features of THUMOS14 (`extract-features --preset thumos14`), 20 classes. ActionFormer's public configuration:
    sequences of 2304 steps, windows of 19, 512 wide, lr 1e-4, batch 2, weight decay 0.05, five epochs of warm-up, EMA 0.999,
    Soft-NMS per class with sigma 0.5, 200 segments; 45 epochs as in InternVideo's, of the same group. Trained on its validation
    videos, tested on its test videos, as everybody does. VideoMAE V2 claims 69.6 (average of tIoU 0.3 to 0.7); a user of the
    released features reports 68.73 with the public code."""
    epochs = 45
    return LocalizeConfig(
        epochs=WARMUP + epochs,
        ema=0.999,
        evaluate_split="test",
        views=PlainViews(views_per_step=2, views_per_clip=1, split="validation"),
        optim=adamw(1e-4, 2, epochs),
        compute=ComputeConfig(precision="fp32"),
        expected_clips=THUMOS_VIDEOS,
    )


def thumos14_i3d() -> LocalizeConfig:
    """ActionFormer's own features of THUMOS14, I3D's, 2048 wide, 30 epochs: the public checkpoint's configuration. It reports
    66.8."""
    config = thumos14()
    return replace(
        config,
        epochs=WARMUP + 30,
        optim=adamw(1e-4, 2, 30),
        model=replace(config.model, input_dim=2048),
    )


def fineaction() -> LocalizeConfig:
    """ViT-g's features of FineAction (`extract-features --preset fineaction`), stretched to 192 steps, where any action is;
    --judge.external-scores says which. The public configurations of ActivityNet and, by InternVideo's group, FineAction: 256
    wide, windows of 7 and all at the last level, positions, lr 1e-3, batch 16, 20 epochs, label smoothing 0.1, distances twice,
    Soft-NMS over all with sigma 0.75 and voting from 0.9, 100 segments, tIoU 0.5 to 0.95. VideoMAE V2 claims 18.24."""
    epochs = 20
    return LocalizeConfig(
        model=LocalizerConfig(num_steps=192, dim=256, head_dim=256, windows=(7, 7, 7, 7, 7, -1), positions=True),
        one_class=True,
        first_norm=200.0,
        smoothing=0.1,
        distance_weight=2.0,
        epochs=WARMUP + epochs,
        ema=0.999,
        evaluate_split="validation",
        sequence=SequenceConfig(stride=None, frames=None, resample=True),
        decode=DecodeConfig(least_steps=0.1),
        nms=Suppression(sigma=0.75, most=100, per_class=False, voting=0.9),
        judge=JudgeConfig(tious="activitynet"),
        views=PlainViews(views_per_step=16, views_per_clip=1, split="training"),
        optim=adamw(1e-3, 16, epochs),
        compute=ComputeConfig(precision="fp32"),
        expected_clips=FINEACTION_VIDEOS,
        expected_classes=1,
    )


def own() -> LocalizeConfig:
    """Your own videos: as `thumos14`, on what `extract-features` wrote, which says itself what its steps are of; others' need
    --sequence.stride and --sequence.frames, and either --model.input-dim. Splits train and val. Ours: that, and nothing
    else."""
    config = thumos14()
    sequence = replace(config.sequence, stride=None, frames=None)
    return replace(config, sequence=sequence, evaluate_split="val", views=replace(config.views, split="train"))


RECIPES: RecipeBook[LocalizeConfig] = RecipeBook(
    {"a small one": [tiny], "the papers'": [thumos14, fineaction], "ActionFormer's own": [thumos14_i3d], "yours": [own]}
)
