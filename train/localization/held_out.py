"""Whole videos of a split, seen by a model, and judged: in a run now and then, and by a command."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console import may_fail
from pipeline.sampling.splits import checked_split, rows_of_split
from train.compute.parallel import Ranks
from train.localization.configuration import LocalizeConfig
from train.localization.feature_set import FeatureSet
from train.localization.inference import Found, Inference
from train.localization.judging import judge, write
from train.localization.video_scores import read_video_scores
from train.stage import Evaluation

FOLDER = "localization"  # of a run


class HeldOutVideos:
    """An evaluator: whole videos of a split, shared by the ranks. What it writes is of its last call: of the running mean,
    where there is one."""

    def __init__(self, config: LocalizeConfig, dataset: FeatureSet, ranks: Ranks, folder: Path) -> None:
        self._config, self._dataset, self._ranks, self._folder = config, dataset, ranks, folder
        self._split = checked_split(config.evaluate_split)
        self._rows = rows_of_split(dataset, self._split)
        if not sum(len(dataset.truth(row)[1]) for row in self._rows.tolist()):
            raise ValueError(
                f"--evaluate-split {self._split}: its {len(self._rows)} videos have no action of the classes of training, so "
                "there is no mean average precision"
            )
        if (scores := config.judge.external_scores) is not None:
            read_video_scores(scores, dataset.annotations.classes)  # so that what is wrong with them is said before training

    @property
    def missing(self) -> list[str]:
        """Annotated videos of the split without features."""
        wanted, there = self._split.split(","), {video.key for video in self._dataset.videos}
        annotated = self._dataset.annotations.videos.values()
        return [video.name for video in annotated if video.name not in there and (video.split in wanted or wanted == ["all"])]

    def __call__(self, model: Any, step: int) -> Evaluation:
        found = self.look(model)
        verdict = judge(self._dataset, found, self._config.judge)
        pictures: dict[str, tuple[Path, np.ndarray]] = {}
        if self._ranks.rank == 0:
            with may_fail(FOLDER):
                about = {"weights": f"step {step} of {self._folder.parent.name}", **self.about}
                pictures = write(self._folder, self._dataset, verdict, about, self._config.judge.pictures)[1]
        missing = [*self.missing, *verdict.unread]
        figures = {f"held_out_{name}": value for name, value in verdict.figures.items()}
        of = len(self._rows) + len(self.missing)
        return Evaluation(figures, pictures, clips=of - len(missing), of=of, missing=missing)

    @property
    def about(self) -> dict[str, Any]:
        """What an evaluation is of."""
        return {"annotations": str(self._config.annotations), "split": self._split, "missing": self.missing}

    def look(self, model: Any) -> dict[int, Found | str]:
        """What is found in every video, on every rank the same."""
        config, ranks, rows = self._config, self._ranks, self._rows.tolist()
        seeing = Inference(self._dataset, config.decode, config.nms, ranks.device)
        shares = [rows[rank :: ranks.world_size] for rank in range(ranks.world_size)]
        passes = max(map(seeing.passes, shares))
        mine = list(seeing(model, shares[ranks.rank], passes))
        return dict(chain(*ranks.gather(mine)))
