"""The process of some parts of the GPU suite: one after the other, each with a `Bench` to put its figures down with."""

import gc
import importlib
import json
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.notes import Notes

if TYPE_CHECKING:
    import torch

    from benchmarks.parts.results import Result

LOST_DEVICE = 77  # exit status: nothing more can be done on the GPU in this process
LEAST_SHARE = 0.6  # of the seconds that a part takes, which must be left for it to begin


class AbsentError(RuntimeError):
    """A figure cannot be had here; the message is the reason. No failure."""


class Bench:
    """What a part is given: device, sizes, and a place for its figures. Its job is {notes, work, data, dry}."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self.dry, self.notes = bool(job["dry"]), Notes(Path(job["notes"]))
        self.work, self.data = Path(job["work"]), Path(job["data"]) if job["data"] else None
        self.part = ""

    @cached_property
    def device(self) -> "torch.device":
        """The first GPU; in a dry walk the CPU. Raises AbsentError without a GPU."""
        import torch

        if self.dry:
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise AbsentError(f"torch {torch.__version__} sees no CUDA device")
        torch.cuda.set_device(0)
        return torch.device("cuda", 0)

    def size(self, full: Any, toy: Any) -> Any:
        """One of the two, the second in a dry walk."""
        return toy if self.dry else full

    def note(self, kind: str, **values: Any) -> None:
        """A line about this part."""
        self.notes.write(kind, part=self.part, **values)
        print(
            self.part, kind, *(f"{value:.4g}" if isinstance(value, float) else value for value in values.values()), flush=True
        )

    def put(self, results: Iterable["Result"], **detail: Any) -> None:
        """Figures, at once; `detail` is anything that JSON can hold."""
        for result in results:
            self.note("figure", **result.as_json() | {"detail": {**result.detail, **detail}})

    def figure(self, name: str, value: float, unit: str, baseline: float | None = None, **detail: Any) -> None:
        """One figure. Value and baseline have the same unit."""
        ratio = value / baseline if baseline else None
        self.note("figure", name=name, value=value, unit=unit, baseline=baseline, ratio=ratio, detail=detail)

    def remark(self, text: str) -> None:
        """A sentence for the report: what the figures mean for a default."""
        self.note("remark", text=text)

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Some of the figures: if they fail it is put down, and the others go on."""
        try:
            yield
        except AbsentError as reason:
            self.note("absent", name=name, reason=str(reason))
        except Exception as error:
            self.note("failure", name=name, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            traceback.clear_frames(error.__traceback__)  # they hold tensors
            self._release()

    def _release(self) -> None:
        """Give back the memory of what nobody holds any more. Ends the process if the GPU cannot be used in it any more."""
        gc.collect()
        if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError:
                print("the GPU cannot be used any more in this process", flush=True)
                sys.exit(LOST_DEVICE)

    def run(self, parts: Iterable[Mapping[str, Any]], ends: float) -> None:
        """All parts that there is time for until time.time() is `ends`."""
        for part in parts:
            self.part, left, began = part["name"], max(0.0, ends - time.time()), time.time()
            if left < LEAST_SHARE * part["seconds"]:
                self.note("not done", reason=f"{left:.0f} s were left, it takes {part['seconds']:.0f}")
                continue
            self.note("began")
            module, function = part["function"].rsplit(".", 1)
            with self.attempt(self.part):
                module = module if "." in module else f"{__package__}.{module}"
                getattr(importlib.import_module(module), function)(self, *part["words"])
            self._release()
            self.note("ended", seconds=time.time() - began)


def main() -> None:
    """A process of the runner's; the job is its argument."""
    job = json.loads(sys.argv[1])
    Bench(job).run(job["parts"], job["ends"])
