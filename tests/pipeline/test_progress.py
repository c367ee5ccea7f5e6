import io
import sys
import time

import pytest
from tqdm import tqdm

from pipeline.progress import Progress


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def of(clock: Clock, bar: Progress) -> Progress:
    """A bar that begins now, by this clock."""
    bar._time, bar.start_t, bar.last_print_t = clock, clock.now, clock.now
    bar.told()
    return bar


def steps(bar: Progress, number: int, seconds: float) -> None:
    for _ in range(number):
        bar._time.now += seconds
        bar.update()


def test_a_log_gets_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    with of(Clock(), Progress(total=4000, unit="file", desc="webvid")) as bar:
        bar.set_postfix(rejects=7, refresh=False)
        steps(bar, 9, 20.0)
        tqdm.write("something else")  # clears and draws bars again, on a terminal
        steps(bar, 2, 20.0)
    assert capsys.readouterr().err.splitlines() == [
        "webvid: 3 of 4,000 files (0%), 01:00 so far, 22:12:20 left, rejects=7",
        "webvid: 6 of 4,000 files (0%), 02:00 so far, 22:11:20 left, rejects=7",
        "webvid: 9 of 4,000 files (0%), 03:00 so far, 22:10:20 left, rejects=7",
    ]


def test_what_else_says_it_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with of(Clock(), Progress(total=100, unit="step", initial=50)) as bar:
        steps(bar, 2, 50.0)
        bar.told()
        steps(bar, 1, 50.0)
        assert capsys.readouterr().err == "52 of 100 steps (52%), 01:40 so far, 40:00 left\n"
        steps(bar, 1, 50.0)
    assert capsys.readouterr().err == "54 of 100 steps (54%), 03:20 so far, 38:20 left\n"


def test_what_is_soon_over_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Progress(range(50), unit="clip")) == [*range(50)]
    with Progress(total=2, quiet=True) as bar:
        bar.update(2)
    assert capsys.readouterr() == ("", "")


def test_bytes_and_no_total() -> None:
    with Progress(total=3_000_000, unit="B", unit_scale=True, desc="writing") as bar:
        bar.n = 1_500_000
        assert bar.line().startswith("writing: 1.50M of 3.00MB (50%), 00:0")
    with Progress(total=0, unit="folder") as bar:
        bar.n = 1234
        assert bar.line().startswith("1,234 folders, 00:0")


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=3, unit="clip", mininterval=0) as bar:
        for _ in range(3):
            time.sleep(0.001)
            bar.update()
    assert "3/3" in terminal.getvalue() and "\r" in terminal.getvalue()
