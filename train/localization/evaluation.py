"""tubecell localize evaluate: how good a localizer is on a split, one of a run or of the public ActionFormer code."""

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.localizer_weights import built
from pipeline.labels import read_label_map
from pipeline.storage.remote import on_disk
from train.accuracy.evaluate_command import evaluate_command
from train.compute.parallel import Ranks
from train.config import LABEL_MAP, configuration_of, read_stage
from train.localization.beginning import read_localizer
from train.localization.configuration import LocalizeConfig
from train.localization.held_out import HeldOutVideos
from train.localization.judging import judge, write

KEYS = ("model_ema", "model", "best", "best_ema")
Recipes = Mapping[str, Callable[[], LocalizeConfig]]


def main(arguments: Sequence[str], recipes: Recipes) -> int:
    """The exit status."""
    return evaluate_command("localize evaluate", arguments, parsed, lambda options, ranks: evaluate(options, recipes, ranks))


def parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("localize evaluate", description=__doc__)
    parser.add_argument("weights", metavar="RUN_OR_FILE", help="a run's folder, or a file of weights with --recipe")
    parser.add_argument("--key", choices=KEYS, help="of a run (default: its running mean, if it has one)")
    parser.add_argument("--recipe", metavar="NAME", help="whose sizes the weights of a file have")
    parser.add_argument("--features", type=on_disk, metavar="FOLDER", help="default: the run's")
    parser.add_argument("--annotations", type=on_disk, metavar="JSON", help="default: the run's")
    parser.add_argument("--split", help="one, several as val,test, or all (default: the run's or recipe's --evaluate-split)")
    parser.add_argument("--external-scores", type=on_disk, metavar="JSON", help="of whole videos; default: the run's")
    parser.add_argument("--out", type=on_disk, metavar="FOLDER", help="default: evaluations/WEIGHTS-SPLIT")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="time lines, of the first videos (8)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options = parser.parse_args(words)
    if options.pictures < 0:
        raise ValueError(f"--pictures {options.pictures} must be at least 0")
    if options.out is None:
        name = os.path.basename(os.path.normpath(options.weights))
        options.out = Path("evaluations") / "-".join(filter(None, (name, options.key, options.split)))
    return options


def evaluate(options: argparse.Namespace, recipes: Recipes, ranks: Ranks) -> None:
    """All ranks call it. Raises ValueError for weights, features and annotations that do not fit each other."""
    config, names = asked(options, recipes)
    place = Path(options.weights)
    weights = read_localizer(place / f"{options.key}.safetensors" if options.key else place)
    dataset = config.dataset(names=names or weights.labels)
    if len(dataset.names) != weights.num_classes:
        raise ValueError(
            f"{weights.place} has {weights.num_classes} classes, and {dataset.place} {len(dataset.names)}: give the "
            "annotations it was trained on, or weights of these"
        )
    model = built(config.model, weights.num_classes, weights.tensors).to(ranks.device)
    held_out = HeldOutVideos(config, dataset, ranks, options.out)
    verdict = judge(dataset, held_out.look(model), config.judge)
    if ranks.rank == 0:
        about: dict[str, Any] = {"weights": weights.place, **held_out.about}
        found, _ = write(options.out, dataset, verdict, about, options.pictures)
        print("\n".join(lines(found, options.out)), flush=True)


def asked(options: argparse.Namespace, recipes: Recipes) -> tuple[LocalizeConfig, list[str] | None]:
    """The configuration, and the classes, if a run tells them. Raises ValueError."""
    run, names = Path(options.weights), None
    if (run / "config.json").exists():
        if (stage := read_stage(run / "config.json")) != "localize":
            raise ValueError(f"{run} is a run of `{stage}`, not of `localize`")
        config = configuration_of(run, next(iter(recipes.values()))())
        names = read_label_map(run / LABEL_MAP) if (run / LABEL_MAP).exists() else None
        if options.recipe:
            raise ValueError(f"--recipe {options.recipe}: {run} is a run, which has its own; leave it")
    elif options.recipe not in recipes:
        said = f"--recipe {options.recipe} is not known" if options.recipe else "--recipe is needed"
        raise ValueError(f"{said}: {run} is a file of weights, which do not say what they are of; {', '.join(recipes)}")
    else:
        config = recipes[options.recipe]()
    given = {name: value for name in ("features", "annotations") if (value := getattr(options, name))}
    config = replace(config, **given, evaluate_split=options.split or config.evaluate_split)
    if options.external_scores:
        config = replace(config, judge=replace(config.judge, external_scores=options.external_scores))
    if not config.has_data:
        raise ValueError("--features FOLDER and --annotations JSON are needed")
    return config, names


def lines(found: Mapping[str, Any], folder: Path) -> list[str]:
    """For people."""
    shown = [f"{found['videos']} videos, {found['actions']} actions of split {found['split']}"]
    if lost := [*found["missing"], *found["unread"]]:
        more = f" and {len(lost) - 8} others" if len(lost) > 8 else ""
        shown.append(f"in no figure, without features that can be read: {', '.join(lost[:8])}{more}")
    shown += found["notices"]
    shown.append("mAP by tIoU " + "  ".join(f"{tiou:.2f} {found[f'map_{tiou:.2f}']:.2%}" for tiou in found["tious"]))
    shown.append(f"mAP {found['map']:.2%}; each class, predictions and time lines are in {folder}")
    return shown
