"""--profile-loader: RUN/loader_profile/report.html of the run itself, written anew from time to time and at its end.

Rank 0's lies in that folder, the others' in rank-1 and so on. A loader's notes are taken anyway; what it costs to make a
report of them, some 0.2 s for 20,000 clips, is kept below half a per cent of the time by how often that is done.
"""

import time
from pathlib import Path

from pipeline.loader import ClipLoader
from pipeline.report.figures import figures, settings_of
from pipeline.report.loader_page import assemble, write_report
from pipeline.stage_meters import StageMeters

COST = 0.005  # of the time, at most
FIRST, LONGEST = 60.0, 3600.0  # seconds until the first report, and between two


class LiveProfile:
    """Watches a loader from now on."""

    def __init__(self, run: Path, stage: str, loader: ClipLoader, rank: int, device: str, machine: str) -> None:
        self.folder = run / "loader_profile" if rank == 0 else run / "loader_profile" / f"rank-{rank}"
        self._stage, self._loader, self._device, self._machine = stage, loader, device, machine
        self._began = time.perf_counter()
        self._due = self._began + FIRST
        self._spent = 0.0
        loader.meters = StageMeters()

    def write_if_due(self) -> None:
        """Once a step."""
        if time.perf_counter() >= self._due:
            self.write()

    def write(self) -> None:
        """The report so far; none before the second batch."""
        meters = self._loader.meters
        if meters is None or len(meters.batches) < 2:
            return
        began = time.perf_counter()
        loader = self._loader
        found = figures(meters, loader.manifest, loader.recipe, loader.workers, loader.failures)
        batches = found["batches"]
        views = batches["clips_per_s"] * loader.recipe.views_per_clip
        rates = {"together": {"median": views, "rounds": [views]}}
        if self._device != "cpu":  # elsewhere the model is slower beside a decoder than without one
            alone = views / max(1 - (batches["wait_share"] or 0.0), 1e-3)
            rates["model"] = {"median": alone, "rounds": [alone]}
        profile = assemble(
            manifest=loader.manifest,
            recipe=loader.recipe,
            loader=found,
            run=found,
            rates=rates,
            settings=settings_of(loader) | {"cost_of_the_report": self._spent / max(began - self._began, 1e-9)},
            machine=self._machine,
            title=f"tubecell {self._stage} --profile-loader",
        )
        write_report(self.folder, profile)
        now = time.perf_counter()
        self._spent += now - began
        self._due = now + min(max(FIRST, (now - began) / COST), LONGEST)
