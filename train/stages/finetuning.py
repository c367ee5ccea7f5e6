"""Fine-tuning: a classifier on a pre-trained encoder (VideoMAE V2, section 4 and Tables 9, 11, 14, 15)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from model.classifier import VideoClassifier
from model.config import Implementation
from model.initialization import HEAD_SCALE
from model.trainable import Trainable
from model.weights import Transfer
from pipeline.loader import Batch, ClipLoader, LoaderState
from pipeline.sampling import PlainViews, SamplingRecipe
from pipeline.sampling.draws import Draws, check_pairs
from pipeline.sampling.frames import Temporal
from pipeline.sampling.mixing import Mixing
from pipeline.sampling.recipe import CropResize
from pipeline.sampling.sampler import TrainingSampler
from pipeline.settings import setting
from pipeline.storage.manifest import Manifest
from train.accuracy.accuracy import TOP, places
from train.augmentation import AugmentConfig, augmented, may_flip, mixed_labels, on_device
from train.classes import head_of
from train.compute.memory import STATISTIC, BlockShape, Cost, ParameterSizes
from train.compute.optimizer import parameter_groups
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig, OptimConfig, RunConfig, at_least_1
from train.evaluation import held_out
from train.parts import from_init, nothing_frozen
from train.soft_labels import soft_cross_entropy, soft_labels
from train.stage import Evaluator
from train.stages.labelled_clips import LabelledClips


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneConfig(RunConfig):
    """A fine-tuning run."""

    frames: Temporal = "linspace"
    """Of a clip: "linspace", the official window of training, whose steps are 4 and sometimes 5; "tsn", one of each of T
    segments of the whole clip (Something-Something), or "tsn_video", never a segment's last; "stride", as in pre-training."""
    crop: Literal["random_resized", "multi_scale"] = setting("random_resized", was="random_resized")
    """Crops of views: "random_resized", 8 to 100 % of a frame's area (the official scripts), or "multi_scale", as in
    pre-training, at least two thirds of its side, for what is small and may lie anywhere."""
    crop_resize: CropResize = setting("official", was="antialiased")
    """How a view of training is made of its crop: "official", not antialiased, pixels to 1/128 of a level; or "antialiased", to
    whole levels, as in pre-training and evaluation."""
    positions: Literal["interpolated", "official"] = "interpolated"
    """Of views of another size or length than the recipe's: its own position table, interpolated (--model.positions-size,
    --model.positions-frames), or, as the official code does, a new one of the same tokens in another order."""
    drop_path: float = 0.1
    """Probability that a view skips a branch of the last block; it grows linearly from 0 at the first."""
    head_dropout: float = 0.0
    """Probability that a feature is dropped before the head."""
    head_scale: float = HEAD_SCALE
    """What the initial values of a head that begins anew are multiplied by."""
    layer_decay: float = 0.75
    """Learning rate of a block by that of the next one; the head has the whole."""
    expected_classes: int = 400
    """Classes to reckon with in a dry run without --data."""

    views: PlainViews = field(default_factory=lambda: PlainViews(views_per_step=1024, views_per_clip=2))
    optim: OptimConfig = setting(default_factory=lambda: OptimConfig(betas=(0.9, 0.999)), may_change=True)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        super(FinetuneConfig, self).__post_init__()  # slots: the class that a bare super() names is another
        sizes: dict[str, Any] = {"positions_size": self.model.input_size, "positions_frames": self.model.num_frames}
        if self.positions == "official":
            sizes = dict.fromkeys(sizes)
        elif self.model.positions_size or self.model.positions_frames:
            sizes = {}
        object.__setattr__(self, "model", replace(self.model, **sizes))
        check_fine_tuning(self, "drop_path", "head_dropout")
        if self.augment.mixes:
            check_pairs(self.sampling.clips_per_step, 1)

    @property
    def sampling(self) -> SamplingRecipe:
        """Without masks. Raises ValueError if such views cannot be taken."""
        return self.joined(
            masks=None,
            temporal=self.frames,
            crop=self.crop,
            crop_resize=self.crop_resize,
            randaugment=self.augment.operations_of_frames,
        )

    def accumulation(self, world_size: int, most: int | None = None) -> int:
        """As of any run; with mixup a forward pass holds whole pairs. Raises ValueError for ranks that would part them."""
        passes = RunConfig.accumulation(self, world_size, most)
        if not self.augment.mixes:
            return passes
        check_pairs(self.sampling.clips_per_step, world_size)
        pairs, pair = self.sampling.clips_per_step // world_size // 2, 2 * self.views.views_per_clip
        most = most or self.compute.most_views
        if most < pair:
            raise ValueError(
                f"--compute.views-per-forward {most} must be at least {pair}, the views of two clips: mixup's partners stay "
                "together"
            )
        most //= pair
        return next(n for n in range(math.ceil(pairs / most), pairs + 1) if pairs % n == 0)


def check_trunk(config: Any, *dropped: str) -> None:
    """The same of stages without a head of classes. Raises ValueError for values that cannot be."""
    for name in dropped:
        if not 0 <= (value := getattr(config, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least 0 and less than 1")
    if not 0 < config.layer_decay <= 1:
        raise ValueError(f"--layer-decay {config.layer_decay} must be over 0 and at most 1")


def check_fine_tuning(config: Any, *dropped: str) -> None:
    """What the configurations of stages that train a head on a trunk have in common; `dropped` are fields with probabilities.
    Raises ValueError for values that cannot be."""
    check_trunk(config, *dropped)
    if not (math.isfinite(config.head_scale) and config.head_scale > 0):
        raise ValueError(f"--head-scale {config.head_scale} must be over 0")
    at_least_1(config, "expected_classes")


class Finetuning:
    """The stage."""

    name: ClassVar[str] = "finetune"

    def __init__(self, config: FinetuneConfig, clips: LabelledClips | None = None) -> None:
        """`clips` know which classes there are; by default the dataset's."""
        self.config, self._clips = config, clips or LabelledClips(config, config.expected_classes)

    frozen = nothing_frozen

    def loader(self, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None) -> ClipLoader:
        """Endless batches of the configuration's recipe; with mixup, of whole pairs. Raises ValueError, too, for a dataset
        without classes."""
        pairs = TrainingSampler(pairs=self.config.augment.mixes)
        beforehand = Finetuning(replace(self.config, data=None))
        return self._clips.loader(ranks, state, clips_per_batch, label_map, beforehand, sampler=pairs)

    @property
    def names(self) -> list[str] | None:
        """Of the classes; None in a dry run without a dataset."""
        return self._clips.names

    @property
    def num_classes(self) -> int:
        return self._clips.num_classes

    def model(self, how: Implementation) -> VideoClassifier:
        config = self.config
        return VideoClassifier(
            config.model, self.num_classes, config.drop_path, config.head_dropout, how, head_scale=config.head_scale
        )

    def start_from(self, model: Trainable) -> Transfer | None:
        """The encoder without its last norm, and the rows of a head that are of these classes."""
        return from_init(self, model, lambda weights: head_of(weights, self.names, self.num_classes, self._clips.manifest))

    def groups(self, model: Trainable) -> list[dict[str, Any]]:
        """Layer by layer."""
        depth, decay = self.config.model.encoder_depth, self.config.optim.weight_decay
        return parameter_groups(model.named_parameters(), decay, self.config.layer_decay, depth)

    def loss(self, model: VideoClassifier, batch: Batch, draws: Draws | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Against smoothed and mixed labels. How often the first, or one of the first five guesses is right, is told where
        views are whole."""
        config, views = self.config, len(batch.views) // len(batch.rows)
        labels = batch.labels.repeat_interleave(views)
        if draws is None:
            logits_nC = model(batch.views).float()
            return soft_cross_entropy(logits_nC, soft_labels(labels, logits_nC.shape[1], 0.0)), right(logits_nC, labels)
        views_nTHWC, mixing = self.seen(batch, draws)
        logits_nC = self.guessed(model, views_nTHWC, draws)
        soft_nC = soft_labels(labels, logits_nC.shape[1], config.augment.smoothing)
        if mixing is None:
            return soft_cross_entropy(logits_nC, soft_nC), right(logits_nC, labels)
        return soft_cross_entropy(logits_nC, mixed_labels(soft_nC, mixing)), {}

    def seen(self, batch: Batch, draws: Draws) -> tuple[Tensor, Mixing | None]:
        """The views of a batch with the noise of training, see `augmented`."""
        views = len(batch.views) // len(batch.rows)
        return augmented(batch.views, draws, self.config.augment, np.repeat(self._may_flip(batch), views))

    def guessed(self, model: VideoClassifier, views_nTHWC: Tensor, draws: Draws) -> Tensor:
        """Logits (n, C) float32 of such views, with the noise that is in the model."""
        config, device = self.config, views_nTHWC.device
        keep = on_device(draws.keep(model.drop_rates), device) if config.drop_path else None
        features = None
        if config.head_dropout:
            features = on_device(draws.keep_features(config.head_dropout, config.model.encoder_dim), device)
        return model(views_nTHWC, keep, features).float()

    def _may_flip(self, batch: Batch) -> np.ndarray:
        return may_flip(batch, self.config.augment.never_flipped)

    def cost(self, compute: ComputeConfig) -> Cost:
        """Kept outside of the blocks are e N P of patches, and while the loss runs 4 bytes of each pixel, normalised; beside
        them its partner and what is made of the two."""
        config, dtype, classes = self.config.model, PRECISIONS[compute.precision].encoder, self.num_classes
        N, D = config.num_tokens, config.encoder_dim
        block = BlockShape(N, N, D, config.encoder_mlp_dim, config.encoder_heads, dtype)
        pixels = config.num_frames * config.input_size**2 * 3
        sixteen_bits, augment = self.config.crop_resize == "official", self.config.augment
        floats = 4 * pixels if sixteen_bits or augment.mixes or augment.erasing else 0
        features = 3 if self.config.head_dropout else 2  # before the last norm and after it; what dropout leaves
        with torch.device("meta"):
            sizes = ParameterSizes.of(self.model(Implementation()))
        macs = config.encoder_depth * block.mac + N * config.patch_values * D + D * classes
        return Cost(
            blocks=((block,) * config.encoder_depth,),
            sizes=sizes,
            gmac=macs / 1e9,
            outside=dtype.itemsize * N * config.patch_values + floats + STATISTIC * (2 + features * D) + 8 * classes,
            errors=floats + 8 * classes,
            loss=12 * classes,
            inputs=pixels * (2 if sixteen_bits else 1),
            notes={
                **self._clips.said,
                "forward": f"{macs / 1e9:.2f} GMAC a view of {N} tokens; {6 * macs / 1e12:.3g} TFLOP a view in training",
            },
        )

    def evaluators(self, model: VideoClassifier, ranks: Ranks, run: Path, manifest: Manifest) -> Sequence[Evaluator]:
        """On clips with a label; the weights with the best top-1 accuracy are kept."""
        if not self.config.evaluate_every:
            return []
        return held_out(self, ranks, run, manifest, self._clips.held_out(manifest), best="held_out_top1")


def right(logits_nC: Tensor, labels_n: Tensor) -> dict[str, Tensor]:
    """The shares of views whose label is the first guess and, of more than five classes, one of the first five -> float32 ()
    each."""
    classes = logits_nC.shape[1]
    place_n = places(logits_nC, labels_n).where(labels_n >= 0, classes)
    first = {"top1": 1, f"top{TOP}": TOP} if classes > TOP else {"top1": 1}
    return {name: (place_n < guesses).float().mean() for name, guesses in first.items()}
