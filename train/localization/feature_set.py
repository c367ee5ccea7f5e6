"""Videos as sequences of features with their actions: what a localizer is trained on, in rows like the clips of a manifest."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.localizer_config import LocalizerConfig
from model.segments import to_steps
from train.localization.annotations import Action, AnnotatedVideo, Annotations, Faults, read_annotations
from train.localization.feature_files import DESCRIBED, FeatureFile, FeatureFiles
from train.localization.sequences import SequenceConfig, Timing, resampled, timing

UNEQUAL = 0.1  # share by which features may be longer or shorter than their video before it is told
ONE_CLASS = "action"  # the name of all classes together


@dataclass(frozen=True, slots=True)
class FeatureVideo:
    """A row."""

    key: str
    split: str
    file: FeatureFile
    timing: Timing
    duration: float
    """Seconds."""
    actions: Sequence[Action]
    """As they are annotated."""

    def read(self, config: SequenceConfig, dim: int, first: int = 0, end: int | None = None) -> np.ndarray:
        """Steps of the sequence -> float32 (T, C). Raises ValueError as `FeatureFile.read`, with the path."""
        try:
            if config.resample:
                return resampled(self.file.read(dim), self.timing.steps)[first:end]
            every = config.downsample
            last = None if end is None else end * every
            return self.file.read(dim, first * every, last, every)
        except ValueError as error:
            raise ValueError(f"{self.file.path} {error}") from None


class FeatureSet:
    """Of annotations and a folder of features; `place` and so on are a `Dataset`'s. Memory: the annotations, and 1 kB a video.

    What cannot be used is left out, named and counted: see `notices`. Raises ValueError if nothing is left.
    """

    def __init__(
        self,
        annotations: Path,
        folder: Path,
        model: LocalizerConfig,
        config: SequenceConfig,
        names: Sequence[str] | None = None,
        one_class: bool = False,
    ) -> None:
        """`names` of the classes: by default all of the annotations; `one_class`: every action is just an action."""
        self.place, self.version, self.model = str(annotations), 1, model
        self.annotations: Annotations = read_annotations(annotations)
        self.faults = Faults({kind: list(places) for kind, places in self.annotations.faults.found.items()})
        self.one_class = one_class
        self.names = list(names or ([ONE_CLASS] if one_class else self.annotations.classes))
        self.files = FeatureFiles(folder)
        self.config = self._described(config)
        self.videos = [video for name in sorted(self.annotations.videos) if (video := self._video(name))]
        if not self.videos:
            said = "; ".join(self.faults.lines())
            raise ValueError(f"--features {folder} has no features for any video of --annotations {annotations}: {said}")
        self.splits = sorted({video.split for video in self.videos} - {""})
        place = {name: number for number, name in enumerate(self.splits)}
        self.split = np.array([place.get(video.split, -1) for video in self.videos])
        self.sources, self.source = ["features"], np.zeros(len(self.videos), np.int64)
        self._labels = {name: number for number, name in enumerate(self.names)}
        self._truth = [self._actions(video) for video in self.videos]
        self.fingerprint = self._fingerprint(annotations)

    def __len__(self) -> int:
        return len(self.videos)

    def clip(self, row: int) -> FeatureVideo:
        return self.videos[row]

    def label(self, action: Action) -> int:
        """-1 for a class that `names` lack."""
        return 0 if self.one_class else self._labels.get(action.label, -1)

    def truth(self, row: int) -> tuple[Tensor, Tensor]:
        """Segments in steps of the sequence, float32 (N, 2), and labels, int64 (N,)."""
        return self._truth[row]

    @property
    def notices(self) -> list[str]:
        """For people."""
        return self.faults.lines()

    def _video(self, name: str) -> FeatureVideo | None:
        about = self.annotations.videos[name]
        path = self.files.find(self.config.file_name.format(name))
        if path is None:
            self.faults.add("annotated videos have no file of features, and are left out", name)
            return None
        try:
            file = FeatureFile.of(path, self.model.input_dim)
        except (ValueError, OSError) as error:
            self.faults.add("files of features are left out", f"{path.name} {error}")
            return None
        facts = self.files.facts(self.config.file_name.format(name))
        fps = self.config.fps or facts.get("fps") or about.fps
        if not fps and self.config.stride is None:
            fps = 1.0  # steps are spread over the video, whatever its frames
        if not fps:
            self.faults.add("videos have no fps in annotations or features, and are left out (--sequence.fps)", name)
            return None
        stride, frames = self.config.stride, self.config.frames
        duration = about.duration or facts.get("seconds")
        shown = ((file.steps - 1) * stride + frames) / fps if stride and frames else duration
        duration = duration or shown
        if duration is None or shown is None:
            self.faults.add("videos have no duration in annotations or features, and are left out", name)
            return None
        found = timing(file.steps, self.config, stride, float(fps), float(duration), self.model.num_steps)
        if abs(shown - duration) > max(UNEQUAL * duration, (frames or 0) / fps * 2):
            self.faults.add(
                "files of features are not as long as their video (other --sequence.stride or --sequence.fps?)",
                f"{path.name} {shown:.1f} s of {duration:.1f} s",
            )
        return FeatureVideo(name, about.split, file, found, float(duration), self._inside(about, float(duration), shown))

    def _inside(self, about: AnnotatedVideo, duration: float, shown: float) -> list[Action]:
        """The actions that are in the video. (Those that end after it are as they are annotated.)"""
        kept = []
        for action in about.actions:
            where = f"{about.name} {action.label} {action.begin:g} to {action.end:g} s"
            if action.begin >= duration:
                if not about.duration:  # else told already
                    self.faults.add("actions lie outside of their video, and are left out", f"{where} of {duration:.1f} s")
                continue
            if action.begin >= shown:
                self.faults.add("actions begin after the last of their features: nothing can be learned of them", where)
            elif action.end > duration + 1:
                self.faults.add("actions end more than a second after their video, and are taken as they are", where)
            kept.append(action)
        return kept

    def _actions(self, video: FeatureVideo) -> tuple[Tensor, Tensor]:
        labels = [self.label(action) for action in video.actions]
        for action, label in zip(video.actions, labels, strict=True):
            if label < 0:
                self.faults.add("actions are of a class that is not among those of training, and left out", action.label)
        known = [action for action, label in zip(video.actions, labels, strict=True) if label >= 0]
        seconds = torch.tensor([(each.begin, each.end) for each in known], dtype=torch.float64).reshape(-1, 2)
        at = video.timing
        steps = to_steps(seconds, at.stride, at.frames, at.fps).float()
        return steps, torch.tensor([label for label in labels if label >= 0], dtype=torch.int64)

    def _described(self, config: SequenceConfig) -> SequenceConfig:
        """With what the features say of themselves. Raises ValueError if that is something else, or nothing is said."""
        told, where = self.files.described, self.files.folder / DESCRIBED
        if not told:
            if config.stride and not config.frames:
                raise ValueError(f"--sequence.frames is needed: there is no {where} that says of how many frames a step is")
            return config
        span = told["step"] * (told["window"] - 1) + 1
        for name, theirs in (("stride", told["stride"]), ("frames", span), ("fps", told["fps"])):
            ours = getattr(config, name)
            if ours is not None and ours != theirs:
                raise ValueError(f"{where} says {name} {theirs}; --sequence.{name} {ours:g} is another: give that")
        return replace(config, stride=told["stride"], frames=span)

    def _fingerprint(self, annotations: Path) -> str:
        digest = hashlib.blake2b(annotations.read_bytes(), digest_size=16)
        for video in self.videos:
            digest.update(f"{video.key} {video.file.steps} {video.file.bytes}\n".encode())
        digest.update("\n".join(self.names).encode())
        return digest.hexdigest()
