"""What every benchmark is as a program: options become figures, or an error that people understand, and an exit status."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.parts.results import Result, check_json
from pipeline.decoding.decode import DecodeError

Options = TypeVar("Options")
Work = Callable[[Options], Sequence[Result] | int | None]
Main = Callable[..., int]  # of a command line's words, by default this process's


@dataclass(frozen=True, kw_only=True, slots=True)
class WithFigures:
    """An option of who has figures."""

    json: Path | None = None
    """File to write the figures to: a list of name, value, unit, baseline, ratio, rounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WithTurns(WithFigures):
    """Options of who takes turns."""

    rounds: int = 5
    """In each of them everybody has a turn."""
    seconds: float = 3.0
    """Of a turn, about; at least one piece of work."""


def program(options: type[Options], **ends: str | int) -> Callable[[Work[Options]], Main]:
    """Makes a program's `main(arguments)` of what it does with its options. It returns its figures, which are written to
    --json, or a status; `ends` are as in `finished`. Its help is the text of its file; its flags may have the prefixes that
    they have in train/pretrain.py."""

    def decorate(work: Work[Options]) -> Main:
        def main(arguments: Sequence[str] | None = None) -> int:
            import tyro  # the GPU suite does without: its machine may lack it

            words = sys.argv[1:] if arguments is None else arguments
            words = [re.sub(r"^--(model|views|compute)\.", "--", word) for word in words]
            given = tyro.cli(options, args=words, description=work.__globals__["__doc__"])
            file = getattr(given, "json", None)

            def run() -> int | None:
                check_json(file)
                found = work(given)
                if file and isinstance(found, Sequence):
                    file.write_text(json.dumps([result.as_json() for result in found], indent=1) + "\n")
                return None if isinstance(found, Sequence) else found

            return finished(run, work.__globals__["__file__"], **ends)  # type: ignore[arg-type]

        return main

    return decorate


def finished(work: Callable[[], int | None], file: str, *, smaller: str = "--views", failed: int = 1) -> int:
    """Do it -> the exit status: what it returns, or 0; 2 when it cannot be as asked, `failed` when it failed, 130 if stopped by
    ^C. `smaller` is the flag to lower where a GPU's memory does not suffice."""
    name = Path(file).stem
    try:
        return work() or 0
    except (ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except torch.OutOfMemoryError as error:
        print(f"{name}: the GPU's memory is too small for this; lower {smaller}. {error}", file=sys.stderr)
    except (RuntimeError, DecodeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"{name}: stopped, nothing is written", file=sys.stderr)
        return 130
    return failed
