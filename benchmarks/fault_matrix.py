#!/usr/bin/env python3
"""What a training run survives: faults made to happen to the real command, under the real torchrun, and what came of each.

    tubecell fault-matrix [--kills 20] [--data DATASET] [--only WORD ...] [--table TABLE.md]

A two-layer model on a CPU, so that all of it takes minutes; the tests do the same with forks (tests/train/test_faults.py). A
run that is not disturbed comes first: what the others leave is compared with its losses and weights. Exit code 1 if a fault
has another outcome than it should.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import json
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Any

import torch
import tyro
from safetensors.torch import load_file

from benchmarks.parts import trainer_faults
from benchmarks.parts.generated_dataset import generated_dataset
from benchmarks.parts.program import program
from benchmarks.parts.results import describe_machine
from benchmarks.parts.trainer_faults import Fault
from pipeline.children import environment
from train import pretrain
from train.watch.json_lines import read_lines

STEPS = 60
RECIPE = [
    "tiny",
    *("--views.views-per-step", "16", "--loader.workers", "1", "--steps", str(STEPS), "--log-every", "1", "--save-every", "5"),
    *("--model.input-size", "32", "--model.num-frames", "8"),
    *("--model.encoder-dim", "32", "--model.encoder-depth", "2", "--model.encoder-heads", "2"),
    *("--model.decoder-dim", "16", "--model.decoder-depth", "1", "--model.decoder-heads", "2"),
]
CLOSE = 1e-5  # of two losses, where ranks add up in another order
PATIENCE = 300.0  # seconds for anything here
SIGNALS = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How much, and on what."""

    kills: Annotated[int, tyro.conf.arg(help="Of one run, at random moments.")] = 20
    data: Annotated[Path | None, tyro.conf.arg(help="A dataset; by default 64 generated clips in data/throughput.")] = None
    only: Annotated[tuple[str, ...], tyro.conf.arg(help="Words of the faults to make; by default all of them.")] = ()
    seed: Annotated[int, tyro.conf.arg(help="Of the random moments.")] = 0
    table: Annotated[Path | None, tyro.conf.arg(help="File for the table, in Markdown.")] = None


@dataclass(slots=True)
class Outcome:
    """What came of a fault."""

    fault: str
    wrong: list[str] = field(default_factory=list)  # what is not as it should be
    facts: list[str] = field(default_factory=list)

    def expect(self, as_it_should: bool, words: str) -> None:
        (self.facts if as_it_should else self.wrong).append(words if as_it_should else f"not: {words}")


class Matrix:
    """The runs, in a folder of their own."""

    def __init__(self, folder: Path, dataset: Path, options: Options) -> None:
        self.folder, self.dataset, self.options = folder, dataset, options
        self.draw = random.Random(options.seed)
        self.straight = folder / "straight"

    def start(
        self, out: Path, *options: str, ranks: int = 1, torchrun: Sequence[str] = (), faults: Sequence[Fault] = ()
    ) -> subprocess.Popen[str]:
        """The command; what it says goes to OUT.log."""
        launcher = (
            ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *torchrun] if ranks > 1 else []
        )
        program = ["-m", pretrain.__name__]
        if faults:
            program = ["-m", trainer_faults.__name__, json.dumps([asdict(fault) for fault in faults])]
        command = [sys.executable, *launcher, *program, *RECIPE, "--data", str(self.dataset), "--out", str(out), *options]
        variables = environment(OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", PYTHONSAFEPATH="1")
        with out.with_suffix(".log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables, text=True)

    def run(self, out: Path, *options: str, **how: Any) -> int:
        """To the end -> exit code."""
        return self.start(out, *options, **how).wait(PATIENCE)

    def same(self, outcome: Outcome, out: Path, *, to_the_last_bit: bool = False) -> None:
        """Compare with the run that was not disturbed."""
        ours, theirs = losses(out), losses(self.straight)
        if to_the_last_bit:
            weights, expected = (load_file(each / "model.safetensors") for each in (out, self.straight))
            equal = ours == theirs and all(torch.equal(tensor, expected[name]) for name, tensor in weights.items())
            outcome.expect(equal, "losses and final weights equal to the last bit")
            return
        complete = ours.keys() == theirs.keys()
        worst = max((abs(ours[step] / theirs[step] - 1) for step in theirs), default=1.0) if complete else 1.0
        outcome.expect(worst <= CLOSE, f"every loss within {worst:.0e} of the undisturbed run's")

    def nan_in_a_batch(self, outcome: Outcome) -> None:
        out = self.folder / "nan-in-a-batch"
        code = self.run(out, ranks=2, faults=[Fault("nan in a batch", (20, 21), rank=1)])
        skipped = read_lines(out / "skipped.jsonl")
        found = [(line["step"], line["ranks"], len(line["clips"])) for line in skipped]
        outcome.expect(code == 0 and found == [(20, [1], 4), (21, [1], 4)], "2 steps skipped by both, rank 1's clips named")
        outcome.expect(read_lines(out / "metrics.jsonl")[-1]["skipped"] == 2, "counted")

    def nan_in_a_parameter(self, outcome: Outcome) -> None:
        out = self.folder / "nan-in-a-parameter"
        code = self.run(out, ranks=2, faults=[Fault("nan in a parameter", (17,), rank=1)])
        said = out.with_suffix(".log").read_text()
        stopped = code == 1 and "steps 18 to 37 " in said and "were skipped: loss not finite" in said
        outcome.expect(stopped, "stops after 20 steps, which it names")
        outcome.expect(
            f"The last good checkpoint is {out / 'checkpoints' / 'step-00000015'}" in said, "names the last good one"
        )
        outcome.expect(saved(out)[-1] == 15, "nothing saved since")

    def exception(self, outcome: Outcome) -> None:
        out = self.folder / "exception"
        process = self.start(out, ranks=2, faults=[Fault("exception", (12,), rank=1)])
        self.until(out, 11)
        began = time.perf_counter()
        code = process.wait(PATIENCE)
        took = time.perf_counter() - began
        last_words = out.with_suffix(".log").read_text().partition("Root Cause (first observed failure)")[2]
        outcome.expect(code == 1, f"all ranks ended in {took:.0f} s")
        outcome.expect("made to fail in step 12" in last_words, "torchrun's last words are the exception")

    def restarts(self, outcome: Outcome) -> None:
        out = self.folder / "restarts"
        faults = [Fault("exception", (12,), rank=1), Fault("kill -9", (33,), rank=0, restart=1)]
        code = self.run(out, ranks=2, torchrun=("--max-restarts", "2"), faults=faults)
        outcome.expect(code == 0 and len(environments(out)) == 3, "torchrun --max-restarts 2 goes on by itself, twice")
        self.same(outcome, out)

    def signal_to_torchrun(self, outcome: Outcome, number: signal.Signals) -> None:
        out = self.folder / number.name.lower()
        process = self.start(out, ranks=2, torchrun=SIGNALS)
        at = self.until(out, self.draw.randrange(10, 40))
        process.send_signal(number)
        code = process.wait(PATIENCE)
        said = out.with_suffix(".log").read_text()
        outcome.expect(
            f"stopped by {number.name} after step {saved(out)[-1]}" in said, f"step {at} seen, {saved(out)[-1]} saved"
        )
        outcome.facts.append(f"torchrun's status {code}")
        outcome.expect(self.run(out, ranks=2) == 0, "the same command goes on")
        self.same(outcome, out)

    def fewer_ranks(self, outcome: Outcome) -> None:
        out = self.folder / "fewer-ranks"
        for ranks, until in ((4, 18), (2, 37)):
            process = self.start(out, ranks=ranks)
            self.until(out, until)
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
        code = self.run(out)
        worlds = [start["world_size"] for start in environments(out)]
        steps = [start["first_step"] for start in environments(out)]
        outcome.expect(code == 0 and worlds == [4, 2, 1], f"begun at steps {', '.join(map(str, steps))}")
        self.same(outcome, out)

    def wrong_number_of_ranks(self, outcome: Outcome) -> None:
        out = self.folder / "three-ranks"
        code = self.run(out, ranks=3)
        words = "8 clips a step cannot be shared by 3 ranks; possible world sizes: 1, 2, 4, 8"
        outcome.expect(code == 1 and words in out.with_suffix(".log").read_text(), f'"{words}"')

    def kills(self, outcome: Outcome) -> None:
        out = self.folder / "kills"
        waits: list[float] = []  # seconds from a start to its first line of the log
        for number in range(self.options.kills):
            began, now, before = time.perf_counter(), time.time(), last_step(out)
            process = self.start(out)
            if number % 4 == 3:  # anywhere while it starts
                time.sleep(self.draw.uniform(0.0, statistics.median(waits)))
            else:
                self.until(out, since=now)
                waits.append(time.perf_counter() - began)
                if before and last_step(out) >= STEPS - 6:
                    outcome.wrong.append(f"the run was over after {number} kills; take fewer")
                    break
                time.sleep(self.draw.uniform(0.0, 0.15))
            process.kill()
            process.wait()
        code = self.run(out)
        starts = environments(out)
        outcome.expect(code == 0, f"{self.options.kills} times; {len(starts)} starts came so far that they left a record")
        self.same(outcome, out, to_the_last_bit=True)
        outcome.facts.append(f"from the kill to the next line of the log {statistics.median(waits):.1f} s (median)")
        parts = [start["startup"] for start in starts if "startup" in start]
        medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
        outcome.facts.append(", ".join(f"{name} {seconds:.1f}" for name, seconds in medians.items()))

    def until(self, out: Path, step: int = 1, since: float = 0.0) -> int:
        """Wait for a line of the log, of a step or of one after it, that was written since then -> the last one then."""
        deadline = time.monotonic() + PATIENCE
        while not ((found := read_lines(out / "metrics.jsonl")) and found[-1]["step"] >= step and found[-1]["time"] > since):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no step {step} in {out} after {PATIENCE:g} s; see {out.with_suffix('.log')}")
            time.sleep(0.005)
        return int(found[-1]["step"])


def losses(out: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_lines(out / "metrics.jsonl")}


def last_step(out: Path) -> int:
    return max([line["step"] for line in read_lines(out / "metrics.jsonl")][-1:], default=0)


def saved(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").glob("step-*"))


def environments(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "environment.json").read_text())


@program(Options)
def main(options: Options) -> int:
    """Returns 1 if an outcome is not as it should be."""
    dataset, outcomes = options.data or generated_dataset(), list[Outcome]()
    with tempfile.TemporaryDirectory(prefix="tubecell-faults-") as folder:
        matrix = Matrix(Path(folder), dataset.resolve(), options)
        faults: dict[str, Callable[[Outcome], None]] = {
            "NaN in one rank's batch, 2 ranks": matrix.nan_in_a_batch,
            "NaN in one parameter, 2 ranks": matrix.nan_in_a_parameter,
            "exception on one of 2 ranks": matrix.exception,
            "exception, then kill -9 of one of 2 ranks, with restarts": matrix.restarts,
            "SIGTERM to torchrun, 2 ranks": partial(matrix.signal_to_torchrun, number=signal.SIGTERM),
            "SIGUSR1 to torchrun --signals-to-handle, 2 ranks": partial(matrix.signal_to_torchrun, number=signal.SIGUSR1),
            "4 -> 2 -> 1 ranks in mid-epoch": matrix.fewer_ranks,
            "3 ranks for 8 clips a step": matrix.wrong_number_of_ranks,
            "kill -9 at random moments": matrix.kills,
        }
        if code := matrix.run(matrix.straight):
            said = matrix.straight.with_suffix(".log").read_text()
            raise RuntimeError(f"the run without faults ended with status {code}\n{said}")
        for name, make in faults.items():
            if options.only and not any(word in name for word in options.only):
                continue
            outcome, began = Outcome(name), time.perf_counter()
            make(outcome)
            outcomes.append(outcome)
            verdict, took = "WRONG" if outcome.wrong else "as it should be", time.perf_counter() - began
            print(f"{name}: {verdict} ({took:.0f} s): {'; '.join(outcome.wrong + outcome.facts)}", flush=True)
    if options.table:
        options.table.write_text(table(outcomes, options))
    return 1 if any(outcome.wrong for outcome in outcomes) else 0


def table(outcomes: Sequence[Outcome], options: Options) -> str:
    """In Markdown."""
    rows = "\n".join(f"| {each.fault} | {'; '.join(each.wrong + each.facts)} |" for each in outcomes)
    return (
        "# What a training run survives\n\n"
        f"`tubecell fault-matrix --kills {options.kills} --seed {options.seed}` on {describe_machine()}; a two-layer "
        f"model, {STEPS} steps, a checkpoint every 5, written in the background.\n\n"
        f"| fault | outcome |\n|---|---|\n{rows}\n"
    )


if __name__ == "__main__":
    sys.exit(main())
