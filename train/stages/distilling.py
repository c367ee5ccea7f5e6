"""Distillation: a small classifier learns what a large one makes of the same views (VideoMAE V2, Tables 16 and 17).

Teacher and student see the same noise, mixed views included, as "a good teacher is patient and consistent" (Beyer et al., 2022)
has it, which the paper follows. No label is used.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from model.classifier import VideoClassifier
from model.config import MODELS, Implementation, ModelConfig
from model.trainable import Trainable
from model.weights import Transfer
from pipeline.labels import Labels
from pipeline.loader import Batch, ClipLoader, LoaderState
from pipeline.sampling.draws import Draws
from pipeline.sampling.sampler import TrainingSampler
from pipeline.settings import setting
from pipeline.storage.manifest import Manifest
from pipeline.storage.remote import as_given, is_url
from train.compute.memory import Cost, Costed
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig
from train.evaluation import held_out
from train.parts import clips_per_second, open_loader
from train.soft_labels import distillation_loss
from train.stage import Evaluator, Frozen
from train.stages.finetuning import FinetuneConfig, Finetuning, right
from train.stages.labelled_clips import LabelledClips
from train.targets.teacher import Teacher, forward_bytes, forward_gmac, num_parameters

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig(FinetuneConfig):
    """A distillation. What it has of fine-tuning is the student's; no label is smoothed, as none is used."""

    teacher: str | None = setting(None, may_change=True, place=True)
    """Weights of any layout, or a run's folder: a classifier of any size, which takes views like the student's. A run that goes
    on refuses other weights, wherever they lie."""
    temperature: float = 3.0
    """That logits of both are divided by."""
    squared: bool = False
    """Multiply the loss by the temperature squared, as Hinton et al. do; the paper does not say."""
    logits: Literal["fp16", "fp32"] = "fp16"
    """Type that the teacher's logits are rounded to."""
    classes: Literal["dataset", "teacher"] = "dataset"
    """The student's: those of the dataset, each of which the teacher must know, or all of the teacher's. Of a dataset without
    labels they are the teacher's."""
    expected_teacher: Literal["tiny", "vit-s", "vit-b", "vit-l", "vit-h", "vit-g"] = "vit-g"
    """To reckon with in a dry run without --teacher."""

    def __post_init__(self) -> None:
        super(DistillConfig, self).__post_init__()  # slots: the class that a bare super() names is another
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"--temperature {self.temperature} must be over 0, and finite")
        if self.teacher is not None and is_url(self.teacher):
            raise ValueError(f"--teacher {as_given(self.teacher)} must be a file or a folder on a disk; download it first")


class Distilling:
    """The stage. The student is a fine-tuned model, and made, started and noised as one."""

    name: ClassVar[str] = "distill"

    def __init__(self, config: DistillConfig) -> None:
        """Raises ValueError for a teacher that cannot be."""
        self.config = config
        self._teacher = None if config.teacher is None else Teacher(config.teacher, config.model)
        self._bind()

    def _bind(self) -> None:
        self._clips = TaughtClips(self.config, self._teacher)
        self._student = Finetuning(self.config, self._clips)

    def loader(self, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None) -> ClipLoader:
        """As in fine-tuning; of clips without labels, too. Raises ValueError, too, without a teacher, or if it does not know
        the classes."""
        if self._teacher is None:
            raise ValueError("--teacher WEIGHTS is needed: who the student learns from (a run, or a file of any layout)")
        beforehand = copy.copy(self)
        beforehand.config = replace(self.config, data=None)
        beforehand._bind()
        pairs = TrainingSampler(pairs=self.config.augment.mixes)
        loader = self._clips.loader(ranks, state, clips_per_batch, label_map, beforehand, sampler=pairs)
        try:
            self._clips.ask_teacher()
        except ValueError:
            loader.close()
            raise
        return loader

    def model(self, how: Implementation) -> VideoClassifier:
        self._how = how
        return self._student.model(how)

    def frozen(self) -> Mapping[str, Frozen]:
        assert self._teacher is not None
        self._clips.ask_teacher()
        return {"teacher": self._teacher.frozen(self._how)}

    def start_from(self, model: Trainable) -> Transfer | None:
        return self._student.start_from(model)

    def groups(self, model: Trainable) -> list[dict[str, Any]]:
        return self._student.groups(model)

    def loss(self, model: VideoClassifier, batch: Batch, draws: Draws | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Against the teacher's logits; and how often both have the same first guess. In an evaluation against the labels, as
        in fine-tuning, or, where there are none, against the teacher's."""
        labelled = self._clips.labelled
        if draws is None and labelled:
            return self._student.loss(model, batch, None)
        views_nTHWC, mixing = (batch.views, None) if draws is None else self._student.seen(batch, draws)
        teacher_nC = self._taught(views_nTHWC)
        logits_nC = model(views_nTHWC).float() if draws is None else self._student.guessed(model, views_nTHWC, draws)
        found = {"agreement": (logits_nC.argmax(1) == teacher_nC.argmax(1)).float().mean()}
        if labelled and mixing is None:
            found |= right(logits_nC, batch.labels.repeat_interleave(len(batch.views) // len(batch.rows)))
        return distillation_loss(logits_nC, teacher_nC, self.config.temperature, self.config.squared), found

    def _taught(self, views_nTHWC: Tensor) -> Tensor:
        """The teacher's logits (n, C), rounded."""
        assert self._teacher is not None
        return self._teacher(views_nTHWC).to(DTYPES[self.config.logits]).float()

    def cost(self, compute: ComputeConfig) -> Cost:
        """The student's, and the teacher's forward pass, which is through before anything of the student is kept."""
        cost, dtype, classes = self._student.cost(compute), PRECISIONS[compute.precision].encoder, self._clips.num_classes
        sizes, said = expected(self.config) if self._teacher is None else (self._teacher.sizes, self._teacher.said)
        gmac, number = forward_gmac(sizes, classes), num_parameters(sizes, classes)
        return replace(
            cost,
            before=cost.errors + forward_bytes(sizes, dtype),
            frozen_gmac=gmac,
            frozen_bytes=dtype.itemsize * number,
            notes={**cost.notes, "teacher": f"{said}; {number:,} parameters, frozen; forward {gmac:.2f} GMAC a view"},
        )

    def evaluators(self, model: VideoClassifier, ranks: Ranks, run: Path, manifest: Manifest) -> Sequence[Evaluator]:
        """On clips with a label; the weights with the best top-1 accuracy are kept. Where there are no labels, on all clips of
        the split, and those that agree most with the teacher."""
        if not self.config.evaluate_every:
            return []
        if self._clips.labelled:
            return held_out(self, ranks, run, manifest, self._clips.held_out(manifest), best="held_out_top1")
        return held_out(self, ranks, run, manifest, best="held_out_agreement")


class TaughtClips(LabelledClips):
    """The same of a student: its classes are the dataset's, or its teacher's."""

    def __init__(self, config: DistillConfig, teacher: Teacher | None) -> None:
        super().__init__(config, teacher.num_classes if teacher else config.expected_classes)
        self._teacher, self._asked_for = teacher, config.classes
        self.labelled = True
        """Whether labels are places among the classes; known once there is a loader."""

    @cached_property
    def of_teacher(self) -> bool:
        """Whether the classes are the teacher's."""
        config = self._config
        if self._teacher is None or self._asked_for == "teacher" or config.data is None:
            return self._asked_for == "teacher"
        return Labels(Manifest(config.data), config.sampling.split).kind == "none"

    def loader(
        self,
        ranks: Ranks,
        state: LoaderState | None,
        clips_per_batch: int,
        label_map: Path | None,
        beforehand: Costed,
        **how: Any,
    ) -> ClipLoader:
        """Raises ValueError, too, for labels whose classes the teacher does not name."""
        if not self.of_teacher:
            return super().loader(ranks, state, clips_per_batch, label_map, beforehand, **how)
        assert self._teacher is not None
        config, names = self._config, self._teacher.names
        loader = open_loader(
            config,
            ranks,
            config.sampling,
            state=state,
            clips_per_batch=clips_per_batch,
            prefetch=config.loader.prefetch,
            label_map=label_map or names,
            clips_per_second=clips_per_second(beforehand, ranks),
            **how,
        )
        if names is None and loader.label_kind != "none":
            loader.close()
            raise ValueError(
                f"--classes teacher: the teacher's {self._teacher.num_classes} classes have no names, among which to look up "
                f"the labels of {loader.manifest.place}; give a dataset without labels, or weights that name their classes"
            )
        self.manifest, self._labels = loader.manifest, loader.labels
        self.labelled = loader.label_kind == "single"
        return loader

    @cached_property
    def names(self) -> list[str] | None:
        if self.of_teacher and self._teacher:
            return None if self._teacher.names is None else list(self._teacher.names)
        return super().names

    @property
    def num_classes(self) -> int:
        return self._teacher.num_classes if self.of_teacher and self._teacher else super().num_classes

    @property
    def said(self) -> Mapping[str, str]:
        return {"classes": f"{self.num_classes:,}, the teacher's"} if self.of_teacher else super().said

    def ask_teacher(self) -> None:
        """Have it speak of the dataset's classes. Raises ValueError if it does not know them."""
        if self._teacher and not self.of_teacher:
            self._teacher.told_apart(self.names, self.num_classes, self.manifest)


def expected(config: DistillConfig) -> tuple[ModelConfig, str]:
    """The teacher to reckon with where there is none yet: its sizes, and what is said of it."""
    sizes = MODELS[config.expected_teacher]
    side = config.model.input_size // sizes.patch_size * sizes.patch_size
    sizes = replace(sizes, num_frames=config.model.num_frames, input_size=side)
    return sizes, f"{config.expected_teacher} (expected; --teacher WEIGHTS tells)"
