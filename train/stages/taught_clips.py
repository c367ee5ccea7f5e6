"""What a student knows of its dataset: its classes are those of the labels, or its teacher's."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.labels import Labels
from pipeline.loader import ClipLoader, LoaderState
from pipeline.storage.manifest import Manifest
from train.compute.memory import Costed
from train.compute.parallel import Ranks
from train.config import RunConfig
from train.parts import open_training
from train.stages.labelled_clips import LabelledClips
from train.targets.kept_logits import KeptLogits
from train.targets.teacher import Teacher


class TaughtClips(LabelledClips):
    """The same of a student: its classes are the dataset's, or its teacher's."""

    def __init__(self, config: RunConfig, teacher: Teacher | KeptLogits | None, expected: int, *, of_teacher: bool) -> None:
        """`of_teacher`: also where clips have labels; `expected` are the classes to reckon with where nobody knows them."""
        super().__init__(config, teacher.num_classes if teacher else expected)
        self._teacher, self._wanted = teacher, of_teacher
        self.labelled = True
        """Whether labels are places among the classes; known once there is a loader."""

    @cached_property
    def of_teacher(self) -> bool:
        """Whether the classes are the teacher's."""
        config = self._config
        if self._teacher is None or self._wanted or config.data is None:
            return self._wanted
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
        names = self._teacher.names
        loader = open_training(self._config, beforehand, ranks, state, clips_per_batch, label_map or names, **how)
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
