"""What pre-training predicts of the tokens that the encoder does not see: a file a target, and its name in the table."""

from train.targets.features import FeatureTargets
from train.targets.pixels import PixelTargets, PlainPixelTargets
from train.targets.target import Target

TARGETS: dict[str, type[Target]] = {"pixels": PixelTargets, "plain-pixels": PlainPixelTargets, "features": FeatureTargets}

__all__ = ["TARGETS", "Target"]
