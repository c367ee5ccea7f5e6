"""What a command says, wherever it is started; that it cannot be said ends no command and costs no state.

A pipe whose reader has gone (`| head`, a tee that got the same Ctrl-C), a log on a full disk, a terminal that was closed, a
stream that was never open, a locale that knows ASCII only: what cannot be said is left out.
"""

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable, Iterator, Sequence
from traceback import walk_tb
from types import TracebackType
from typing import Any

Main = Callable[..., int]  # of a command line's words, by default this process's
EXTRAS = {"tubecell.dataset_builders": "build", "tubecell.train": "train"}  # of programs in these packages; others want all


class _Sink(io.FileIO):
    """A descriptor of a stream; takes everything, and drops what cannot be written."""

    patience: float | None = None
    fault = ""  # the last that dropped something, but for a reader who has gone
    _stuck = False

    def write(self, data: Any) -> int:
        try:
            self._stuck = not select.select([], [self], [], 0 if self._stuck else self.patience)[1]
            # what select says is for so many bytes; None: a pipe that others made non-blocking is full
            if not self._stuck and (written := super().write(memoryview(data)[: select.PIPE_BUF])) is not None:
                return written
        except BrokenPipeError:
            pass
        except OSError as error:
            self.fault = error.strerror or str(error)
        return memoryview(data).nbytes


def prepare() -> None:
    """Call it first in a command, before it opens anything.

    In an ASCII locale, files and their names could not hold what clips and folders are called: the command begins anew in
    Python's UTF-8 mode (the default from 3.15 on).
    """
    open_streams()
    sys.excepthook = _say_what_ended
    if os.environ.get("PYTHONUTF8") != "1" and sys.getfilesystemencoding() != "utf-8" and sys.executable and sys.orig_argv:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def open_streams(patience: float | None = None) -> None:
    """Writing to sys.stdout and sys.stderr does not fail any more, and what their encoding lacks is written as an escape.

    A reader who does not read for `patience` seconds (a stopped terminal, a pager) misses what is said until he does; None: he
    is waited for. A descriptor below 3 that is closed would be the next file's that is opened, and what libraries print would
    go into it: it leads to nowhere now.
    """
    for descriptor in range(3):
        with contextlib.suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        os.set_inheritable(descriptor, True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115  for good
        elif type(stream) is not io.TextIOWrapper:  # somebody's who listens in, such as a test
            with contextlib.suppress(AttributeError):
                stream.reconfigure(errors="backslashreplace")
        elif isinstance(sink := getattr(stream.buffer, "raw", None), _Sink):  # ours already
            sink.patience = patience
        else:
            with contextlib.suppress(OSError):
                stream.flush()
            sink = _Sink(stream.fileno(), "w", closefd=False)
            sink.patience = patience
            buffer = io.BufferedWriter(sink)
            # line by line: a log is read while it grows
            text = io.TextIOWrapper(buffer, stream.encoding, "backslashreplace", line_buffering=True)
            setattr(sys, name, text)


def check_printed() -> None:
    """For commands whose only product is what they print. Raises ValueError if some of it could not be written; a reader
    who has gone (`| head`), or a stream that was never open, is no error."""
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    if fault := getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "fault", ""):
        raise ValueError(f"what was printed could not all be written: {fault}")


def exit_status(
    *refused: type[Exception], name: str = "error", bare: bool = False
) -> Callable[[Callable[[Sequence[str]], int | None]], Main]:
    """Makes a program's main of one that returns its exit status, None for 0. ValueError, OSError and those `refused` are said
    after `name`, and are 2; so is the help, of who gives no arguments, unless the program is called `bare`, too."""

    def decorate(main: Callable[[Sequence[str]], int | None]) -> Main:
        def command(arguments: Sequence[str] | None = None) -> int:
            words = sys.argv[1:] if arguments is None else arguments
            try:
                if words or bare:
                    return main(words) or 0
                with contextlib.suppress(SystemExit):
                    main(["--help"])
            except (*refused, ValueError, OSError) as error:  # type: ignore[misc]
                print(f"{name}: {error}", file=sys.stderr)
            return 2

        return command

    return decorate


def _say_what_ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A package that is not installed is a line with what to do; the rest is a traceback."""
    if not isinstance(error, ModuleNotFoundError) or not error.name or "." in error.name:
        sys.__excepthook__(kind, error, trace)
        return
    packages = [frame.f_globals.get("__package__") or "" for frame, _ in walk_tb(trace)]  # from the program's own on
    extra = next((EXTRAS[name] for name in packages if name in EXTRAS), "all")
    todo = "run `make install` in the checkout, then `source .venv/bin/activate`"
    if __name__.startswith("tubecell."):
        todo = f"run `pip install 'tubecell[{extra}]'`"
    complain(f"{os.path.basename(sys.argv[0])}: {error.name} is not installed for {sys.executable}; {todo}")


_told: set[str] = set()


def complain(text: str, *, once: bool = False) -> None:
    """A line for people that is no result; whether anybody can hear it is no concern of the caller. `once` in a process."""
    if once:
        if text in _told:
            return
        _told.add(text)
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr:
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def may_fail(what: str) -> Iterator[None]:
    """For what a run says of itself: an error is told once for each `what`, and the run goes on."""
    try:
        yield
    except (Exception, SystemExit) as error:  # Weights & Biases raises what it likes
        if what not in _told:
            _told.add(what)
            complain(f"{what} could not be written: {error}; the run goes on without")
