"""--profile 10:15: what the host and the device did in the steps from 10 to 15, of rank 0.

RUN/profile/steps-10-15.json.gz       a Chrome trace: open it in ui.perfetto.dev or chrome://tracing
RUN/profile/steps-10-15.txt           the operations that took the most time, in a table
RUN/profile/steps-10-15.pickle        on a GPU, every allocation, with what made it: open it in pytorch.org/memory_viz
"""

from pathlib import Path

import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerActivity, profile, schedule

ALLOCATIONS = 200_000  # that are remembered: more than a step of ViT-g has, by far
ROWS = 40


class StepProfiler:
    """Watches the steps of a span, the last one included; before and after them it costs nothing."""

    def __init__(self, run: Path, steps: tuple[int, int], device: torch.device, done: int) -> None:
        """`done` steps are done. The step before the first one is watched, too, but not kept: it pays for the start of
        CUDA's tracer."""
        self._first, self._last = steps
        self._folder, self._on_gpu = run / "profile", device.type == "cuda"
        self._profile: profile | None = None
        self.stepped(done)

    def stepped(self, done: int) -> None:
        """Step `done` is over, as far as the host knows."""
        self._wanted = done >= self._first - 1  # the step that begins now is, or was
        if self._profile is not None:
            if done >= self._last:
                self.close()
            else:
                self._profile.step()
        elif self._first - 2 <= done < self._last:
            self._begin(warm_up=done < self._first - 1)

    def _begin(self, warm_up: bool) -> None:
        if self._on_gpu:
            torch.cuda.memory._record_memory_history(max_entries=ALLOCATIONS)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])]
        plan = schedule(wait=0, warmup=1, active=self._last - self._first + 1, repeat=1) if warm_up else None
        self._profile = profile(activities=activities, schedule=plan, record_shapes=True)
        self._profile.start()

    def close(self) -> None:
        """Write what was recorded. A run that ends sooner leaves what there is."""
        if self._profile is None:
            return
        if self._on_gpu:
            torch.cuda.synchronize()
        profiled, self._profile = self._profile, None
        profiled.stop()
        if not self._wanted:
            return
        self._folder.mkdir(exist_ok=True)
        name = f"steps-{self._first}-{self._last}"
        profiled.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        order = "self_cuda_time_total" if self._on_gpu else "self_cpu_time_total"
        events: EventList = profiled.key_averages()
        (self._folder / f"{name}.txt").write_text(events.table(sort_by=order, row_limit=ROWS))
        if self._on_gpu:
            torch.cuda.memory._dump_snapshot(str(self._folder / f"{name}.pickle"))
            torch.cuda.memory._record_memory_history(enabled=None)
