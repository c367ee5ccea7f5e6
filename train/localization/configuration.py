"""The configuration of a localizer's training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from model.localizer_config import LocalizerConfig
from model.segment_nms import Suppression
from pipeline.sampling import PlainViews, SamplingRecipe
from pipeline.settings import setting
from train.config import LoopConfig, at_least_1
from train.localization.feature_set import FeatureSet
from train.localization.inference import DecodeConfig
from train.localization.judging import JudgeConfig
from train.localization.sequences import SequenceConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizeConfig(LoopConfig):
    """Training of a localizer of actions."""

    features: Path | None = setting(None, may_change=True)
    """A folder with features of each video, NAME.npy, .npz, .pt or .parquet: what `extract-features` wrote, or others'."""
    annotations: Path | None = setting(None, may_change=True)
    """JSON in ActivityNet's layout, as those of THUMOS14, FineAction and EPIC-Kitchens for ActionFormer: see
    train/localization/annotations.py."""
    one_class: bool = False
    """Learn where any action is, not which: classes come from --judge.external-scores."""
    radius: float | None = 1.5
    """A point answers for an action within so many of its strides around the middle; None: anywhere in it."""
    smoothing: float = 0.0
    """Label smoothing of the classes."""
    distance_weight: float = 1.0
    """Of the loss of distances; 0: as much as that of the classes, pass by pass."""
    first_norm: float = 100.0
    """What the running mean of the points that answer for an action begins with, which losses are divided by."""
    expected_classes: int = 20
    """Classes to reckon with in a dry run without --annotations."""

    model: LocalizerConfig = field(default_factory=LocalizerConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    decode: DecodeConfig = setting(default_factory=DecodeConfig, may_change=True)
    nms: Suppression = setting(default_factory=Suppression, may_change=True)
    judge: JudgeConfig = setting(default_factory=JudgeConfig, may_change=True)
    views: PlainViews = field(default_factory=lambda: PlainViews(views_per_step=2, views_per_clip=1))

    def __post_init__(self) -> None:
        super(LocalizeConfig, self).__post_init__()  # slots: the class that a bare super() names is another
        at_least_1(self, "expected_classes")
        views = self.views
        if views.views_per_clip != 1 or views.shuffle != "global" or views.mixture or views.fresh_windows:
            raise ValueError(
                "--views: a step takes parts of videos, one of each, in one order of all; only --views-per-step, "
                "--views.split and --views.arithmetic have a meaning here"
            )
        if self.profile_loader:
            raise ValueError("--profile-loader is about decoding; features are read: leave it")
        if not 0 <= self.smoothing < 1 or self.distance_weight < 0 or not self.first_norm > 0:
            raise ValueError(
                f"--smoothing {self.smoothing} must be at least 0 and less than 1, --distance-weight {self.distance_weight} at "
                f"least 0, --first-norm {self.first_norm} over 0"
            )
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"--radius {self.radius} must be over 0; None takes all of an action")
        if self.judge.external_scores is not None and not self.one_class:
            raise ValueError("--judge.external-scores give segments their classes: they are for --one-class")

    @property
    def sampling(self) -> SamplingRecipe:
        """Of rows; a sequence of features has neither frames nor crops."""
        return SamplingRecipe(seed=self.seed, masks=None, **asdict(self.views))

    @property
    def has_data(self) -> bool:
        return self.features is not None and self.annotations is not None

    @property
    def lacking(self) -> str:
        there = self.has_data and self.out is not None
        return "" if there else "--features FOLDER, --annotations JSON and --out RUN are"

    @property
    def place(self) -> str:
        return str(self.features)

    def dataset(self, version: int | None = None, names: Sequence[str] | None = None) -> FeatureSet:
        """`names` of the classes, by default those of the annotations."""
        assert self.features is not None and self.annotations is not None
        return FeatureSet(self.annotations, self.features, self.model, self.sequence, names, self.one_class)

    @property
    def views_matter(self) -> bool:
        return self.distance_weight == 0
