"""Recipes of pre-training. The docstring says where each value is from; what `@official` names is the official launch script.

Learning rates are per 256 *views*; the flags of V2's scripts are per 256 clips, R = 4 times as much. Where V2's paper and code
differ, the code wins, because the released checkpoints follow it. V1's recipes are its paper's, `--official-script` takes the
script's values; no view is mirrored, which Table 8 of V1 has for Kinetics.
"""

from dataclasses import replace
from typing import Any

from model.config import MODELS
from pipeline.sampling import Views
from train.config import ComputeConfig, OptimConfig
from train.recipes.book import RecipeBook, official
from train.stages.pretraining import PretrainConfig

K400, SSV2, UCF101, HMDB51 = 240_436, 168_913, 9_537, 3_570  # clips of the official training lists (the first split)


def micro() -> PretrainConfig:
    """0.3 M parameters on 8 frames of 32 px (a core teaches it something in minutes: `tubecell learning`). Everything here is
    ours: of 16 tubes 90 % hidden would leave two, so 75 % are. Rates from 8e-3 to 1.6e-2 do; from 4e-2 on some seeds stay for
    long where a token's mean is all that is told. With two views of a clip instead of four, fine-tuning with 25 labelled clips
    of a class was right about 61 instead of 50 %."""
    return PretrainConfig(
        model=MODELS["micro"],
        steps=3000,
        epochs=None,
        views=Views(views_per_step=32, views_per_clip=2, mask_ratio=0.75),
        optim=OptimConfig(base_lr=1.2e-2, base_min_lr=1.2e-4, clip_grad=1.0),
        compute=ComputeConfig(precision="fp32"),
        log_every=50,
        save_every=1000,
        expected_clips=256,
    )


def tiny() -> PretrainConfig:
    """0.9 M parameters on 8 frames of 64 px. Everything here is ours."""
    return PretrainConfig(
        model=MODELS["tiny"],
        steps=1500,
        epochs=None,
        views=Views(views_per_step=16, views_per_clip=2),
        optim=OptimConfig(base_lr=2.4e-2, base_min_lr=2.4e-4, clip_grad=1.0),
        compute=ComputeConfig(precision="fp32"),
        log_every=25,
        save_every=250,
        expected_clips=64,
    )


def own(model: str) -> PretrainConfig:
    """Of a dataset of your own, on one GPU. Ours; each value with its reason:

    - The length is steps, not epochs. V1 (Figure 6) made its set smaller and kept the iterations: "more training iterations
      could contribute to better performance". It gave 9.5 k clips 3200 epochs and 3.5 k clips 4800 (appendix B); who gives a
      small set a large one's epochs finds a model at chance (issues 13 and 84 of its repository). 120,000 steps of 256 views
      are 30.7 million views: UCF101 had 30.5. Over 38,400 clips that is less than 800 epochs, V1's default and V2's for
      ViT-B: --steps 3.125 times the clips makes 800 of it.
    - 256 views: one GPU has no reason for batches that exist to fill 64 of them; V1's smallest was 192. It stands in one pass
      or several, whatever the card: who lets the batch follow the GPUs and not the learning rate loses (issue 20 of V1's).
    - The learning rate, 3e-4 per 256 views, is V1's for UCF101 and HMDB51 (appendix B), by the linear rule of all scripts.
    - Four views of each clip, 90 % hidden, half of the cells decoded, a tenth of warm-up, AdamW and decay: V2's Table 10. No
      clipping, as in the scripts of this size. V1's script for UCF101 hides 75 %; its Figure 5 is best at 90.
    """
    return PretrainConfig(
        model=MODELS[model],
        steps=120_000,
        epochs=None,
        views=Views(views_per_step=256),
        optim=OptimConfig(base_lr=3e-4),
        save_every=2500,
        expected_clips=10_000,
    )


def vit_s_own() -> PretrainConfig:
    """ViT-S on your own videos, on one GPU. Ours; see `own`: 120,000 steps of 256 views, lr 3e-4 for 256. For a first run or a
    small card: a step takes 0.29 of ViT-B's operations. No paper tells how much worse it is on few clips."""
    return own("vit-s")


def vit_b_own() -> PretrainConfig:
    """ViT-B on your own videos, on one GPU. Ours; see `own`: 120,000 steps of 256 views, lr 3e-4 for 256. V1 trained this
    model from nothing on 3.5 k clips of HMDB51 and 9.5 k of UCF101, for as many views."""
    return own("vit-b")


def vit_s_hybrid() -> PretrainConfig:
    """ViT-S on UnlabeledHybrid. Ours, neither paper nor scripts have one: the ViT-B script's values."""
    return replace(vit_b_hybrid(), model=MODELS["vit-s"])


@official("v2/pretrain/vit_b_hybrid_pt")
def vit_b_hybrid() -> PretrainConfig:
    """ViT-B on UnlabeledHybrid (official script: 32 GPUs x 32 clips x 4 views, lr 1e-3 per 256 clips, 200 epochs = 800, 20 of
    warm-up, no clipping). Mask ratios, AdamW and decay: Table 10."""
    optim = OptimConfig(base_lr=2.5e-4)
    return PretrainConfig(model=MODELS["vit-b"], epochs=200, views=Views(views_per_step=4096), optim=optim)


@official("v2/pretrain/vit_l_hybrid_pt")
def vit_l_hybrid() -> PretrainConfig:
    """ViT-L on UnlabeledHybrid (official script: 48 GPUs x 32 clips x 4 views, lr 1e-3 per 256 clips, 300 epochs = 1200, 30
    of warm-up, no clipping). Mask ratios, AdamW and decay: Table 10."""
    optim = OptimConfig(base_lr=2.5e-4)
    return PretrainConfig(model=MODELS["vit-l"], epochs=300, views=Views(views_per_step=6144), optim=optim)


@official("v2/pretrain/vit_h_hybrid_pt")
def vit_h_hybrid() -> PretrainConfig:
    """ViT-H on UnlabeledHybrid (Table 10; official script: 64 GPUs x 32 clips x 4 views). The script's lr, 1e-3 per 256
    clips = 2.5e-4 per 256 views, where Table 10 has 1.5e-4; and no clipping, where it has 0.02."""
    optim = OptimConfig(base_lr=2.5e-4)
    return PretrainConfig(model=MODELS["vit-h"], epochs=300, views=Views(views_per_step=8192), optim=optim)


@official("v2/pretrain/vit_g_hybrid_pt")
def vit_g_hybrid() -> PretrainConfig:
    """ViT-g on UnlabeledHybrid (Table 10, equal to the official script: 64 GPUs x 32 clips x 4 views, lr 1.5e-4 per 256
    views, 300 epochs = 1200, 30 = 120 of warm-up, clipping at 0.02). The script's minimum lr: 1e-5 per 256 clips."""
    optim = OptimConfig(base_lr=1.5e-4, clip_grad=0.02)
    return PretrainConfig(model=MODELS["vit-g"], epochs=300, views=Views(views_per_step=8192), optim=optim)


def vit_b_ssv2() -> PretrainConfig:
    """ViT-B on Something-Something V2 (the ablations of Tables 1 and 2: masks and 800 epochs = 200 x 4 views from there; lr
    1.5e-4, batch 1024 and 40 epochs of warm-up from VideoMAE V1, Table 8, whose setting they follow; minimum lr as in the
    scripts)."""
    views, optim = Views(views_per_step=1024), OptimConfig(base_lr=1.5e-4, warmup_share=0.05)
    return PretrainConfig(model=MODELS["vit-b"], epochs=200, views=views, optim=optim, expected_clips=SSV2)


def videomae_huge() -> PretrainConfig:
    """ViT-H as in a model card of "VideoMAE-Huge" (75 % of the patches hidden at random, a decoder of 8 blocks, 4 frames a
    second, 2048 views a step by 4 passes of 32 GPUs x 16, lr 1.5e-4 per 256, 300 epochs, 10 of them warm-up; K400, SSv2 and 10
    million clips from the web). What it does not say (masks of the encoder alone, AdamW, decay, least lr) is as in V1."""
    return PretrainConfig(
        model=replace(MODELS["vit-h"], decoder_depth=8),
        mask="random",
        epochs=300,
        views=Views(views_per_step=2048, views_per_clip=1, mask_ratio=0.75, decoder_mask_ratio=0.0, sampling="fps:4"),
        optim=OptimConfig(base_lr=1.5e-4, base_min_lr=1e-5, warmup_share=10 / 300),
        compute=ComputeConfig(views_per_forward=16),
        expected_clips=K400 + SSV2 + 10_000_000,
    )


# ------------------------------------------------------------------------------------------------------- VideoMAE (V1)

B_8: dict[str, Any] = {"views": 1024}
L_8: dict[str, Any] = {"views": 512, "decoder_depth": 12}  # the script's depth: the paper tells ViT-B's alone
V1_SCRIPT = "v1/{}/videomae_vit_{}_patch16_224_tubemasking_ratio_{}_epoch_{}/pretrain".format


def v1(
    model: str,
    clips: int,
    *,
    views: int,
    epochs: int,
    lr: float = 1.5e-4,
    mask_ratio: float = 0.9,
    sampling: str = "manifest",
    **decoder: int,
) -> PretrainConfig:
    """Encoder-only masking, one view a clip, 40 epochs of warm-up; the least learning rate, 1e-5 per 256, is the scripts': the
    paper is silent."""
    return PretrainConfig(
        model=replace(MODELS[model], **decoder),
        epochs=epochs,
        views=Views(views_per_step=views, views_per_clip=1, mask_ratio=mask_ratio, decoder_mask_ratio=0.0, sampling=sampling),
        optim=OptimConfig(base_lr=lr, base_min_lr=1e-5, warmup_share=40 / epochs),
        expected_clips=clips,
    )


@official(V1_SCRIPT("kinetics", "small", 0.9, 1600))
def v1_vit_s_k400() -> PretrainConfig:
    """ViT-S on Kinetics-400 (V1's script, 32 GPUs; no table has it)."""
    return v1("vit-s", K400, views=1024, epochs=1601)


@official(V1_SCRIPT("kinetics", "base", 0.9, 1600), views=2048, epochs=1601)
def v1_vit_b_k400(**script: Any) -> PretrainConfig:
    """ViT-B on Kinetics-400, 1600 epochs (V1's Tables 8 and 12; script, 64 GPUs: twice the batch, 1601 epochs)."""
    return v1("vit-b", K400, **B_8 | {"epochs": 1600} | script)


@official(V1_SCRIPT("kinetics", "base", 0.9, 800), views=2048, epochs=801)
def v1_vit_b_k400_800e(**script: Any) -> PretrainConfig:
    """ViT-B on Kinetics-400, 800 epochs (V1's Table 8, its ablations; script, 64 GPUs: twice the batch, 801 epochs)."""
    return v1("vit-b", K400, **B_8 | {"epochs": 800} | script)


@official(V1_SCRIPT("kinetics", "large", 0.9, 1600), epochs=1601)
def v1_vit_l_k400(**script: Any) -> PretrainConfig:
    """ViT-L on Kinetics-400, 1600 epochs (V1's Tables 8 and 12; script, 64 GPUs: 1601 epochs)."""
    return v1("vit-l", K400, **L_8 | {"epochs": 1600} | script)


@official(V1_SCRIPT("kinetics", "huge", 0.9, 1600))
def v1_vit_h_k400() -> PretrainConfig:
    """ViT-H on Kinetics-400 (V1's script, 64 GPUs; no table has it). Its decoder has 12 blocks of width 640."""
    return v1("vit-h", K400, views=1024, epochs=1601, decoder_depth=12, decoder_dim=640)


@official(V1_SCRIPT("ssv2", "small", 0.9, 2400))
def v1_vit_s_ssv2() -> PretrainConfig:
    """ViT-S on Something-Something V2 (V1's script, 64 GPUs; no table has it)."""
    return v1("vit-s", SSV2, views=2048, epochs=2401)


@official(V1_SCRIPT("ssv2", "base", 0.9, 2400), views=2048, epochs=2401)
def v1_vit_b_ssv2(**script: Any) -> PretrainConfig:
    """ViT-B on SSv2, 2400 epochs (V1's Tables 8 and 11; script, 64 GPUs: twice the batch, 2401 epochs)."""
    return v1("vit-b", SSV2, **B_8 | {"epochs": 2400} | script)


@official(V1_SCRIPT("ssv2", "base", 0.9, 800), views=2048, epochs=801)
def v1_vit_b_ssv2_800e(**script: Any) -> PretrainConfig:
    """ViT-B on SSv2, 800 epochs (V1's Table 8, its ablations; script, 64 GPUs: twice the batch, 801 epochs)."""
    return v1("vit-b", SSV2, **B_8 | {"epochs": 800} | script)


def v1_vit_l_ssv2() -> PretrainConfig:
    """ViT-L on SSv2, 2400 epochs (V1's Tables 8 and 11; no script has it: the decoder of that for Kinetics)."""
    return v1("vit-l", SSV2, **L_8, epochs=2400)


SMALL: dict[str, Any] = {"views": 192, "lr": 3e-4, "mask_ratio": 0.75}


@official(V1_SCRIPT("ucf101", "base", 0.75, 3200), epochs=3201)
def v1_vit_b_ucf101(**script: Any) -> PretrainConfig:
    """ViT-B on UCF101, 3200 epochs (V1's appendix B, whose batch of 196 its 8 GPUs cannot share: the script's 192; the script's
    mask ratio, of which the paper is silent, too; 3201 epochs there)."""
    return v1("vit-b", UCF101, **SMALL | {"epochs": 3200} | script)


def v1_vit_l_ucf101() -> PretrainConfig:
    """ViT-L on UCF101, 3200 epochs. Ours: V1 has ViT-B alone, whose values these are, with ViT-L's decoder."""
    return v1("vit-l", UCF101, **SMALL, epochs=3200, decoder_depth=12)


def v1_vit_b_hmdb51() -> PretrainConfig:
    """ViT-B on HMDB51, 4800 epochs at stride 2 (V1's appendix B; batch and mask ratio as for UCF101: no script has it)."""
    return v1("vit-b", HMDB51, **SMALL, epochs=4800, sampling="stride:2")


def v1_vit_l_hmdb51() -> PretrainConfig:
    """ViT-L on HMDB51, 4800 epochs at stride 2. Ours: V1 has ViT-B alone, whose values these are, with ViT-L's decoder."""
    return v1("vit-l", HMDB51, **SMALL, epochs=4800, sampling="stride:2", decoder_depth=12)


CHAPTERS = {
    "your own videos, on one GPU": (vit_s_own, vit_b_own),
    "small machines": (micro, tiny),
    "VideoMAE V2 (dual masking, four views a clip)": (
        *(vit_s_hybrid, vit_b_hybrid, vit_l_hybrid, vit_h_hybrid, vit_g_hybrid, vit_b_ssv2),
    ),
    "VideoMAE (V1: encoder-only masking, one view a clip)": (
        *(v1_vit_s_k400, v1_vit_b_k400, v1_vit_b_k400_800e, v1_vit_l_k400, v1_vit_h_k400),
        *(v1_vit_s_ssv2, v1_vit_b_ssv2, v1_vit_b_ssv2_800e, v1_vit_l_ssv2),
        *(v1_vit_b_ucf101, v1_vit_l_ucf101, v1_vit_b_hmdb51, v1_vit_l_hmdb51, videomae_huge),
    ),
}
RECIPES = RecipeBook(CHAPTERS)
