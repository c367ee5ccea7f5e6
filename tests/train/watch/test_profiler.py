import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from train.config import parse_steps
from train.stages.pretraining import PretrainConfig
from train.watch.profiler import StepProfiler


def test_steps_to_profile() -> None:
    assert parse_steps("10:15") == (10, 15)
    assert parse_steps("3:3") == (3, 3)
    for wrong in ("10", "15:10", "0:5", "a:b", "1:", "-1:5"):
        with pytest.raises(ValueError, match=f"--profile {wrong} must be FIRST:LAST"):
            PretrainConfig(profile=wrong)


@pytest.mark.parametrize(
    ("done", "total", "expected"),
    [
        (0, 8, [4, 5, 6]),
        (2, 8, [4, 5, 6]),  # began, or went on, right before it
        (4, 8, [5, 6]),  # in the middle
        (0, 5, [4, 5]),  # ended in the middle
        (6, 8, None),  # went on behind it
        (0, 2, None),  # ended before it
    ],
)
def test_the_trace_has_the_steps_that_were_asked_for(done: int, total: int, expected: list[int] | None, tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, (4, 6), torch.device("cpu"), done)
    for step in range(done + 1, total + 1):
        with record_function(f"work of step {step}"):
            torch.mm(torch.ones(8, 8), torch.ones(8, 8))
        profiler.stepped(step)
    profiler.close()
    if expected is None:
        assert not (tmp_path / "profile").exists()
        return
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "steps-4-6.json.gz").read_bytes()))
    names = {event.get("name", "") for event in trace["traceEvents"]}
    assert sorted(name for name in names if name.startswith("work")) == [f"work of step {step}" for step in expected]
    assert "aten::mm" in (tmp_path / "profile" / "steps-4-6.txt").read_text()
