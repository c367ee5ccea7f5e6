"""What a stage of classes knows of its dataset: the names of the classes, batches with labels, and clips to evaluate on."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.console import complain
from pipeline.labels import Labels
from pipeline.loader import ClipLoader, LoaderState
from pipeline.storage.manifest import Manifest
from train.classes import check_classes, labelled_rows
from train.compute.memory import Costed
from train.compute.parallel import Ranks
from train.config import RunConfig
from train.parts import open_training


class LabelledClips:
    """Of a configuration; `expected` are the classes to reckon with where there is no dataset yet."""

    def __init__(self, config: RunConfig, expected: int) -> None:
        self._config, self._expected = config, expected
        self._labels: Labels | None = None
        self.manifest: Manifest | None = None  # once they are asked for

    def loader(
        self,
        ranks: Ranks,
        state: LoaderState | None,
        clips_per_batch: int,
        label_map: Path | None,
        beforehand: Costed,
        **how: Any,
    ) -> ClipLoader:
        """Endless batches of the configuration's recipe. `beforehand` is the stage without a dataset: what its step costs
        hardly hangs on the classes, which are not known yet. Says which clips have no label, or one that was never seen.
        Raises ValueError, too, for a dataset without classes."""
        config = self._config
        loader = open_training(config, beforehand, ranks, state, clips_per_batch, label_map, **how)
        try:
            self.manifest, self._labels = loader.manifest, loader.labels
            seen, notices = check_classes(loader.labels, loader.manifest, loader.recipe.split)
            if config.evaluate_every:
                notices += labelled_rows(loader.labels, loader.manifest, config.evaluate_split, seen)[1]
        except ValueError:
            loader.close()
            raise
        loader.notices += notices
        for notice in notices if ranks.rank == 0 else ():
            complain(notice, once=True)
        return loader

    @cached_property
    def names(self) -> list[str] | None:
        """Of the classes: the run's, or the dataset's; None in a dry run without one."""
        if self._labels is None and self._config.data is not None:
            self.manifest = Manifest(self._config.data)
            self._labels = Labels(self.manifest, self._config.sampling.split)
            check_classes(self._labels, self.manifest, self._config.sampling.split)
        return None if self._labels is None else self._labels.names

    @property
    def num_classes(self) -> int:
        return self._expected if self.names is None else len(self.names)

    @property
    def said(self) -> Mapping[str, str]:
        """Of a dry run."""
        return {"classes": f"{self.num_classes:,}" + (" (expected; --data DATASET counts them)" if self.names is None else "")}

    def held_out(self, manifest: Manifest) -> np.ndarray:
        """Rows of `--evaluate-split`, those with a label."""
        assert self._labels is not None
        return labelled_rows(self._labels, manifest, self._config.evaluate_split, np.arange(self.num_classes))[0]
