"""What every benchmark is as a program: options become figures, or an error that people understand, and an exit status."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
import tyro

from pipeline.decoding.decode import DecodeError

Options = TypeVar("Options")
Main = Callable[..., int]  # of a command line's words, by default this process's


def program(options: type[Options], **ends: str | int) -> Callable[[Callable[[Options], int | None]], Main]:
    """Makes a program's `main(arguments)` of what it does with its options; `ends` are as in `finished`. Its help is the text
    of its file; its flags may have the prefixes that they have in train/pretrain.py."""

    def decorate(work: Callable[[Options], int | None]) -> Main:
        def main(arguments: Sequence[str] | None = None) -> int:
            words = sys.argv[1:] if arguments is None else arguments
            words = [re.sub(r"^--(model|views|compute)\.", "--", word) for word in words]
            given = tyro.cli(options, args=words, description=work.__globals__["__doc__"])
            return finished(lambda: work(given), work.__code__.co_filename, **ends)  # type: ignore[arg-type]

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
