"""What the weights that a demo was started with can show of a video: classes, or what is hidden of it."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model.classifier import VideoClassifier
from model.videomae import VideoMAE
from model.weights import Weights
from pipeline.sampling import MaskRule
from train.checkpoint.source import is_run
from train.config import read_config
from train.demos import weights as released
from train.demos.prediction import class_names
from train.demos.reconstruction import needs_pixels

CHECKOUT = Path(__file__).resolve().parents[2]
QUICKSTART = Path("runs") / "quickstart"
HELD_OUT = Path("videos") / "val"  # of the quickstart's clips
MASK_RATIO = 0.9


@dataclass(frozen=True, slots=True)
class Predictor:
    """A classifier, on its device."""

    place: str
    name: str
    model: VideoClassifier
    classes: Sequence[str]
    named: bool
    """Whether the classes have names, and not numbers alone."""


@dataclass(frozen=True, slots=True)
class Reconstructor:
    """An autoencoder, on its device, and what was hidden from it in training, or usually is."""

    place: str
    name: str
    model: VideoMAE
    mask: MaskRule
    mask_ratio: float


@dataclass(frozen=True, slots=True)
class ShownModels:
    """Of all weights, by their places."""

    predictors: dict[str, Predictor] = field(default_factory=dict)
    reconstructors: dict[str, Reconstructor] = field(default_factory=dict)
    neither: list[str] = field(default_factory=list)
    """Sentences: why weights show nothing."""


def load(places: Sequence[str], options: argparse.Namespace) -> ShownModels:
    """Weights as `predict` and `reconstruct` take them, read and built. Raises ValueError for a place that holds no weights,
    for names of classes that do not fit, and if nothing can be shown."""
    shown = ShownModels()
    for place in dict.fromkeys(places):
        weights = released.read(options, place)
        if weights.kind == "classifier":
            classes = class_names(options.labels, weights)
            named = bool(options.labels or weights.labels)
            model = released.build(weights, options)
            shown.predictors[place] = Predictor(place, weights.name, model, classes, named)
        elif why := no_pixels(weights):
            shown.neither.append(why)
        else:
            mask, ratio = hidden_in_training(Path(place))
            shown.reconstructors[place] = Reconstructor(place, weights.name, released.build(weights, options), mask, ratio)
    if not shown.predictors and not shown.reconstructors:
        raise ValueError("; ".join(shown.neither))
    if options.labels and not shown.predictors:
        raise ValueError(f"--labels {options.labels} names classes, and none of the weights has a head of classes")
    return shown


def no_pixels(weights: Weights) -> str | None:
    """Why weights without a head of classes cannot reconstruct, if they cannot."""
    if weights.kind in ("encoder", "detector"):
        what = "an encoder alone" if weights.kind == "encoder" else "a detector of actions in boxes"
        return f"{weights.place} is {what}: it has neither a head of classes nor a decoder, and can show nothing of a video"
    try:
        needs_pixels(weights)
    except ValueError as error:
        return str(error)
    return None


def hidden_in_training(place: Path) -> tuple[MaskRule, float]:
    """A run says it; of others the papers' 90 % of tubes is a good guess."""
    values = read_config(place / "config.json") if is_run(place) else {}
    return values.get("mask", "tube"), values.get("views.mask_ratio", MASK_RATIO)


def quickstart_weights() -> list[str]:
    """What `make quickstart` has left below this folder, or in the checkout. Raises ValueError if it has not."""
    for run in (QUICKSTART, CHECKOUT / QUICKSTART):
        if found := [str(part) for part in (run / "fine-tuned", run) if (part / "model.safetensors").exists()]:
            return found
    raise ValueError(
        f"no weights are given, and {QUICKSTART} has none. Run `make quickstart` first, which trains two small models in five "
        "minutes, or give weights: tubecell demo WEIGHTS ...  (make demo WEIGHTS='...')"
    )


def clips_of_quickstart(places: Sequence[str]) -> Iterator[Path]:
    """If weights are the quickstart's own: of each motion a clip that it held out."""
    for place in places:
        for folder in sorted((Path(place) / HELD_OUT).glob("*/")):
            yield from sorted(folder.glob("*.mp4"))[:1]
