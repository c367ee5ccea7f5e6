"""Localizing: when which action begins and ends in long videos, from features of windows (V2: THUMOS14 and FineAction, with
ActionFormer)."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from model.config import Implementation
from model.localizer import Localizer
from model.segment_losses import segment_losses
from model.weights import Transfer
from pipeline.console import complain
from pipeline.labels import read_label_map
from pipeline.loader import LoaderState
from pipeline.sampling.draws import Draws
from train.augmentation import on_device
from train.compute.memory import STATISTIC, BlockShape, Cost, ParameterSizes
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig
from train.localization.beginning import start_of
from train.localization.configuration import LocalizeConfig
from train.localization.feature_loader import FeatureBatch, FeatureLoader, Targets
from train.localization.feature_set import FeatureSet
from train.localization.held_out import FOLDER, HeldOutVideos
from train.parts import nothing_frozen, plain_groups
from train.stage import Evaluator


class Localizing:
    """The stage."""

    name: ClassVar[str] = "localize"

    def __init__(self, config: LocalizeConfig) -> None:
        self.config, self._names = config, list[str]()
        self._dataset: FeatureSet | None = None  # once the loader has opened it

    frozen = nothing_frozen
    groups = plain_groups

    def loader(self, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None) -> FeatureLoader:
        """Raises ValueError, too, for classes that the run did not begin with."""
        config = self.config
        dataset = config.dataset(names=read_label_map(label_map) if label_map else None)
        self._dataset, self._names = dataset, dataset.names
        loader = FeatureLoader(
            dataset,
            config.sampling,
            Targets(radius=config.radius, first_norm=config.first_norm),
            rank=ranks.rank,
            world_size=ranks.world_size,
            clips_per_batch=clips_per_batch,
            device=ranks.device,
            state=state,
        )
        for notice in loader.notices if ranks.rank == 0 else ():
            complain(f"{dataset.place}: {notice}", once=True)
        return loader

    @cached_property
    def num_classes(self) -> int:
        if not self._names and self.config.has_data:
            self._names = self.config.dataset().names
        return len(self._names) or self.config.expected_classes

    def model(self, how: Implementation) -> Localizer:
        return Localizer(self.config.model, self.num_classes)

    def start_from(self, model: Localizer) -> Transfer | None:
        """All of a localizer, ours or the public code's, strictly by name; classes begin anew where they are others."""
        return start_of(self.config.init, self.config.model, self._names, model)

    def loss(self, model: Localizer, batch: FeatureBatch, draws: Draws | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Summed over the videos, by the running mean of the points that answer in a step of all ranks, times the passes of a
        step: so the mean over passes and ranks is that of the whole step."""
        config, keep = self.config, None
        if draws is not None and config.model.drop_path:
            keep = on_device(draws.keep(model.drop_rates), batch.features.device)
        found = model(batch.features, batch.mask, keep)
        losses = segment_losses(
            batch.counted,
            torch.cat(found.logits, 1),
            torch.cat(found.offsets, 1),
            batch.classes,
            batch.distances,
            normaliser=batch.normaliser,
            smoothing=config.smoothing,
            weight=config.distance_weight,
        )
        passes = config.views.views_per_step / len(batch.rows)
        return losses.whole * passes, {"classes": losses.classes * passes, "distances": losses.distances * passes}

    def cost(self, compute: ComputeConfig) -> Cost:
        """Counted as a transformer whose levels have half of the steps each; of attention the window alone."""
        sizes, dtype = self.config.model, PRECISIONS[compute.precision].encoder
        with torch.device("meta"):
            parameters = ParameterSizes.of(self.model(Implementation()))
        steps = [sizes.num_steps] * sizes.stem_depth + [sizes.num_steps // stride for stride in sizes.strides[1:]]
        blocks = tuple(BlockShape(n, n, sizes.dim, 4 * sizes.dim, sizes.num_heads, dtype) for n in steps)
        points = sum(sizes.num_steps // stride for stride in sizes.strides)
        widths = [sizes.dim, *[sizes.head_dim] * (sizes.head_depth - 1)]
        of_point = sum(a * b for a, b in zip(widths, [*widths[1:], (self.num_classes + 2) / 2], strict=True))
        embed = 3 * sizes.dim * (sizes.input_dim + (sizes.embed_depth - 1) * sizes.dim)
        macs = sum(n * 12 * sizes.dim**2 for n in steps) + sizes.num_steps * embed + 2 * 3 * points * of_point
        heads = 2 * 3 * points * sizes.head_dim * sizes.head_depth
        outside = dtype.itemsize * (sizes.num_steps * (sizes.input_dim + 3 * sizes.embed_depth * sizes.dim) + heads)
        return Cost(
            blocks=(blocks,),
            sizes=parameters,
            gmac=macs / 1e9,
            outside=int(outside) + STATISTIC * points,
            loss=16 * points * (self.num_classes + 2),
            inputs=4 * (sizes.num_steps * sizes.input_dim + points * (self.num_classes + 2)),
            notes={
                "classes": f"{self.num_classes:,}" + ("" if self._names else " (expected; --annotations JSON counts them)"),
                "sequences": f"{sizes.num_steps:,} steps of {sizes.input_dim}, {points:,} points",
            },
        )

    def evaluators(self, model: Localizer, ranks: Ranks, run: Path, manifest: FeatureSet) -> Sequence[Evaluator]:
        """Mean average precision on --evaluate-split; the weights with the best one are kept. Raises ValueError for a split
        that there is not."""
        if not self.config.evaluate_every:
            return []
        assert self._dataset is not None
        call = HeldOutVideos(self.config, self._dataset, ranks, run / FOLDER)
        return [Evaluator(self.config.evaluate_every, call, best="held_out_map")]
