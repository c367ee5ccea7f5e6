"""Distillation: a small classifier learns what a large one makes of the same views (VideoMAE V2, Tables 16 and 17).

Teacher and student see the same noise, mixed views included, as "a good teacher is patient and consistent" (Beyer et al., 2022)
has it, which the paper follows. No label is used.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from model.classifier import VideoClassifier
from model.config import MODELS, Implementation, ModelConfig
from model.trainable import Trainable
from model.weights import Transfer
from pipeline.console import complain
from pipeline.loader import Batch, ClipLoader, LoaderState
from pipeline.sampling.draws import Draws
from pipeline.sampling.mixing import Mixing
from pipeline.sampling.sampler import TrainingSampler
from pipeline.settings import setting
from pipeline.storage.manifest import Manifest
from pipeline.storage.remote import as_given, is_url
from train.augmentation import on_device
from train.compute.memory import Cost
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig
from train.evaluation import held_out
from train.soft_labels import distillation_loss
from train.stage import Evaluator, Frozen
from train.stages.finetuning import FinetuneConfig, Finetuning, right
from train.stages.taught_clips import TaughtClips
from train.targets.kept_logits import FOLDER, Asked, KeptLogits, LogitWriter, keys_of
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
    cache_teacher: bool = False
    """Keep what the teacher says in RUN/teacher, for --teacher-logits of other students: C values a view, by --logits."""
    teacher_logits: str | None = setting(None, may_change=True, place=True)
    """Instead of --teacher: a run with --cache-teacher, or the folder in it. All that decides a view must be the same: dataset,
    seed, views, noise. A run that goes on may change from one to the other."""
    classes: Literal["dataset", "teacher"] = "dataset"
    """The student's: those of the dataset, each of which the teacher must know, or all of the teacher's. Of a dataset without
    labels they are the teacher's."""
    expected_teacher: Literal["micro", "tiny", "vit-s", "vit-b", "vit-l", "vit-h", "vit-g"] = "vit-g"
    """To reckon with in a dry run without --teacher."""

    def __post_init__(self) -> None:
        super(DistillConfig, self).__post_init__()  # slots: the class that a bare super() names is another
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"--temperature {self.temperature} must be over 0, and finite")
        for flag, place in (("--teacher", self.teacher), ("--teacher-logits", self.teacher_logits)):
            if place is not None and is_url(place):
                raise ValueError(f"{flag} {as_given(place)} must be a file or a folder on a disk; download it first")
        if self.teacher_logits is not None and (self.teacher is not None or self.cache_teacher):
            other = "--teacher" if self.teacher is not None else "--cache-teacher"
            raise ValueError(f"{other}: with --teacher-logits no teacher is run; leave one of the two")


class Distilling:
    """The stage. The student is a fine-tuned model, and made, started and noised as one."""

    name: ClassVar[str] = "distill"

    def __init__(self, config: DistillConfig) -> None:
        """Raises ValueError for a teacher that cannot be."""
        self.config = config
        self._teacher = None if config.teacher is None else Teacher(config.teacher, config.model)
        self._kept = None if config.teacher_logits is None else KeptLogits(config.teacher_logits)
        self._writer: LogitWriter | None = None
        self._bind()

    def _bind(self) -> None:
        config, teacher = self.config, self._kept or self._teacher
        self._clips = TaughtClips(config, teacher, config.expected_classes, of_teacher=config.classes == "teacher")
        self._student = Finetuning(self.config, self._clips)

    def loader(self, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None) -> ClipLoader:
        """As in fine-tuning; of clips without labels, too. Raises ValueError, too, without a teacher, or if it does not know
        the classes."""
        if self._teacher is None and self._kept is None:
            raise ValueError(
                "--teacher WEIGHTS is needed: who the student learns from (a run, or a file of any layout); or --teacher-logits"
            )
        beforehand = copy.copy(self)
        beforehand.config = replace(self.config, data=None)
        beforehand._bind()
        pairs = TrainingSampler(pairs=self.config.augment.mixes)
        loader = self._clips.loader(ranks, state, clips_per_batch, label_map, beforehand, sampler=pairs)
        try:
            self._clips.ask_teacher()
            self._keep(loader, ranks)
        except ValueError:
            loader.close()
            raise
        return loader

    def _keep(self, loader: ClipLoader, ranks: Ranks) -> None:
        """Find out whether kept logits are of these views; or prepare to keep them."""
        config, asked = self.config, Asked.of(loader, self.config.augment, self.config.logits)
        made = {"precision": config.compute.precision, "decoder": loader.decoder_choice.name, "device": ranks.device.type}
        if self._kept:
            self._kept.check(asked)
            said = []
            if otherwise := self._kept.otherwise(made):
                said += [
                    f"the logits of {self._kept.place} are as good, but not the same to the last bit: {', '.join(otherwise)}"
                ]
            epoch, step = self._kept.reach()
            there, wanted = epoch * loader.steps_per_epoch + step + 1, config.total_steps(loader.steps_per_epoch)
            if there < wanted:
                said += [f"{self._kept.place} has the teacher's logits of {there:,} steps, and this run has {wanted:,}"]
            loader.notices += said
            for notice in said if ranks.rank == 0 else ():
                complain(notice, once=True)
        elif config.cache_teacher:
            assert config.out is not None
            classes = self._clips.names or self._clips.num_classes
            where = {"rank": ranks.rank, "world_size": ranks.world_size}
            self._writer = LogitWriter(config.out / FOLDER, asked, classes, made, **where)

    def model(self, how: Implementation) -> VideoClassifier:
        self._how = how
        return self._student.model(how)

    def frozen(self) -> Mapping[str, Frozen]:
        if self._kept:
            return {"teacher": Frozen(nn.Identity(), dict, stands_for=self._kept.teacher)}
        assert self._teacher is not None
        self._clips.ask_teacher()
        keep = (self._writer.check, self._writer.flush) if self._writer else ()
        return {"teacher": self._teacher.frozen(self._how, *keep)}

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
        teacher_nC = self._taught(views_nTHWC) if draws is None else self._lesson(batch, views_nTHWC, mixing)
        logits_nC = model(views_nTHWC).float() if draws is None else self._student.guessed(model, views_nTHWC, draws)
        found = {"agreement": (logits_nC.argmax(1) == teacher_nC.argmax(1)).float().mean()}
        if labelled and mixing is None:
            found |= right(logits_nC, batch.labels.repeat_interleave(len(batch.views) // len(batch.rows)))
        return distillation_loss(logits_nC, teacher_nC.float(), self.config.temperature, self.config.squared), found

    def _taught(self, views_nTHWC: Tensor) -> Tensor:
        """The teacher's logits (n, C), rounded."""
        assert self._teacher is not None
        return self._teacher(views_nTHWC).to(DTYPES[self.config.logits])

    def _lesson(self, batch: Batch, views_nTHWC: Tensor, mixing: Mixing | None) -> Tensor:
        """The same in training: kept, or to be kept."""
        if self._kept:
            return on_device(self._kept.of(batch, keys_of(batch, mixing)), views_nTHWC.device)
        logits_nC = self._taught(views_nTHWC)
        if self._writer:
            self._writer.add(batch, keys_of(batch, mixing), logits_nC)
        return logits_nC

    def cost(self, compute: ComputeConfig) -> Cost:
        """The student's, and the teacher's forward pass, which is through before anything of the student is kept."""
        cost, dtype, classes = self._student.cost(compute), PRECISIONS[compute.precision].encoder, self._clips.num_classes
        size = f"{classes * DTYPES[self.config.logits].itemsize:,} bytes a view"
        if self._kept:
            return replace(cost, notes={**cost.notes, "teacher": f"its logits, kept in {self._kept.place}: {size}"})
        sizes, said = expected(self.config) if self._teacher is None else (self._teacher.sizes, self._teacher.said)
        gmac, number = forward_gmac(sizes, classes), num_parameters(sizes, classes)
        return replace(
            cost,
            before=cost.errors + forward_bytes(sizes, dtype),
            frozen_gmac=gmac,
            frozen_bytes=dtype.itemsize * number,
            notes={
                **cost.notes,
                "teacher": f"{said}; {number:,} parameters, frozen; forward {gmac:.2f} GMAC a view",
                **({"kept": f"its logits, {size}"} if self.config.cache_teacher else {}),
            },
        )

    def evaluators(self, model: VideoClassifier, ranks: Ranks, run: Path, manifest: Manifest) -> Sequence[Evaluator]:
        """On clips with a label; the weights with the best top-1 accuracy are kept. Where there are no labels, on all clips of
        the split, and those that agree most with the teacher."""
        if not self.config.evaluate_every:
            return []
        if self._clips.labelled:
            return held_out(self, ranks, run, manifest, self._clips.held_out(manifest), best="held_out_top1")
        if self._kept:
            raise ValueError(
                f"--evaluate-every: without labels a student is held against its teacher, whom --teacher-logits "
                f"{self._kept.place} has not seen such clips with; give --teacher WEIGHTS, or leave it"
            )
        return held_out(self, ranks, run, manifest, best="held_out_agreement")


def expected(config: DistillConfig) -> tuple[ModelConfig, str]:
    """The teacher to reckon with where there is none yet: its sizes, and what is said of it."""
    sizes = MODELS[config.expected_teacher]
    side = config.model.input_size // sizes.patch_size * sizes.patch_size
    sizes = replace(sizes, num_frames=config.model.num_frames, input_size=side)
    return sizes, f"{config.expected_teacher} (expected; --teacher WEIGHTS tells)"
