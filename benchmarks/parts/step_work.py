"""The optimizer step of a stage as a contestant, on one batch in memory, and a matrix product to compare it with."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.parts.path_parts import ModelWork
from benchmarks.parts.stopwatch import Work
from model.config import ModelConfig
from model.flops import executed_gmac
from pipeline.loader import Batch
from pipeline.sampling import PlainViews, Views
from pipeline.sampling.draws import in_pairs
from pipeline.sampling.masking import TokenCounts, mask_indices, token_counts
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig, OptimConfig
from train.stages.finetuning import FinetuneConfig, Finetuning
from train.stages.pretraining import PretrainConfig, Pretraining

MASK_RATIO, DECODER_MASK_RATIO = 0.9, 0.5  # the paper's; a decoder mask ratio of 0 is encoder-only masking
CLIP_GRAD = 0.02  # ViT-g's
CLASSES = 400  # of Kinetics


def pretraining(
    config: ModelConfig,
    compute: ComputeConfig,
    *,
    views: int = 8,
    seed: int = 0,
    dual: bool = True,
    clip_grad: float = CLIP_GRAD,
) -> Pretraining:
    """The stage, with so many views a step, each of a clip of its own."""
    ratio = DECODER_MASK_RATIO if dual else 0.0
    return Pretraining(
        PretrainConfig(
            model=config,
            views=Views(views_per_step=views, views_per_clip=1, mask_ratio=MASK_RATIO, decoder_mask_ratio=ratio),
            optim=OptimConfig(clip_grad=clip_grad),
            compute=compute,
            seed=seed,
        )
    )


def step_work(config: ModelConfig, views: int, compute: ComputeConfig, ranks: Ranks, *, dual: bool = True) -> ModelWork:
    """The step, built and warm: its `work()` is one step and returns `views`."""
    stage = pretraining(config, replace(compute, views_per_forward=views), views=views, dual=dual)
    ratio = DECODER_MASK_RATIO if dual else 0.0
    return ModelWork(stage, random_batch(config, views, ratio, ranks.device), ranks)


def finetuning(
    config: ModelConfig, compute: ComputeConfig | None = None, *, views: int = 8, classes: int = CLASSES
) -> Finetuning:
    """The stage, with so many views a step, each of a clip of its own, and all that is random in it."""
    return Finetuning(
        FinetuneConfig(
            model=config,
            views=PlainViews(views_per_step=views, views_per_clip=1),
            optim=OptimConfig(clip_grad=CLIP_GRAD, betas=(0.9, 0.999)),
            compute=compute or ComputeConfig(),
            head_dropout=0.5,
            expected_classes=classes,
        )
    )


def finetune_work(config: ModelConfig, views: int, compute: ComputeConfig, ranks: Ranks) -> ModelWork:
    """Its step, built and warm."""
    stage = finetuning(config, replace(compute, views_per_forward=views), views=views)
    return ModelWork(stage, labelled_batch(stage, ranks.device), ranks)


def labelled_batch(stage: Finetuning, device: torch.device) -> Batch:
    """Views of random pixels for a forward pass, partners beside each other, with the labels 0, 1, 2 ..."""
    views = stage.config.views.views_per_step // stage.config.accumulation(1)
    batch = random_batch(stage.config.model, views, 0.0, device)
    every = torch.from_numpy(in_pairs(np.arange(stage.config.views.views_per_step))[:views])
    manifest = SimpleNamespace(sources=["own"], source=np.zeros(int(every.max()) + 1, np.int64))
    labels = SimpleNamespace(of=lambda rows: rows % stage.num_classes)
    loader: Any = SimpleNamespace(manifest=manifest, labels=labels)
    return replace(batch, visible=None, decoded=None, loss_weight=None, positions=every, rows=every, loader=loader)


def random_batch(config: ModelConfig, views: int, decoder_mask_ratio: float, device: torch.device) -> Batch:
    """Views of random pixels, each the only one of its clip, with the masks that training draws."""
    size, keys = config.input_size, np.arange(views, dtype=np.uint64)
    masks = mask_indices(keys, config.grid, MASK_RATIO, decoder_mask_ratio)
    visible, decoded, loss_weight = (torch.from_numpy(mask).to(device) for mask in masks)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (views, config.num_frames, size, size, 3), dtype=torch.uint8, generator=generator)
    every, weight = torch.arange(views), torch.ones(views, device=device)
    return Batch(pixels.to(device), visible, decoded, loss_weight, epoch=0, step=0, positions=every, rows=every, weight=weight)


def tokens_of(config: ModelConfig, dual: bool) -> TokenCounts:
    """Tokens of a view with the paper's masks."""
    return token_counts(config.grid, MASK_RATIO, DECODER_MASK_RATIO if dual else 0.0)


def step_flops(config: ModelConfig, views: int, dual: bool) -> float:
    """Executed floating-point operations of a step, without recomputation."""
    tokens = tokens_of(config, dual)
    return 6e9 * executed_gmac(config, tokens.visible, tokens.decoded, tokens.loss) * views


def largest_product(config: ModelConfig, views: int, dual: bool) -> tuple[int, int, int]:
    """(rows, inner, columns) of the linear layer with the most operations in the forward pass of `views`."""
    tokens = tokens_of(config, dual)
    encoded, decoded = views * tokens.visible, views * (tokens.visible + tokens.decoded)
    products = [
        (encoded, config.patch_values, config.encoder_dim),
        (encoded, config.encoder_dim, 3 * config.encoder_dim),
        (encoded, config.encoder_dim, config.encoder_mlp_dim),
        (decoded, config.decoder_dim, 3 * config.decoder_dim),
        (decoded, config.decoder_dim, config.decoder_mlp_dim),
        (views * tokens.loss, config.decoder_dim, config.patch_values),
    ]
    return max(products, key=lambda shape: shape[0] * shape[1] * shape[2])


class GemmWork(Work):
    """One linear layer, over and over: what this device does where nothing but a matrix product is asked of it."""

    def __init__(self, shape: tuple[int, int, int], precision: str, device: torch.device) -> None:
        rows, inner, columns = shape
        self.flops = 2.0 * rows * inner * columns
        dtype = PRECISIONS[precision].encoder
        self.x = torch.randn(rows, inner, dtype=dtype, device=device)
        self.weight = torch.randn(columns, inner, dtype=dtype, device=device)
        self.out: Tensor | None = None

    def prepare(self) -> None:
        """A first call may choose an algorithm."""
        self.work()

    def work(self) -> int:
        """A product, -> 1."""
        with torch.inference_mode():
            self.out = linear(self.x, self.weight)
        return 1
