#!/usr/bin/env python3
"""Everything about tubecell that only a GPU can show, unattended, in two calls that fit into short slots on a card.

    tubecell gpu-suite --out DIR --minutes 6                  steps, end to end with libav, kernels, resume: no DALI needed
    tubecell gpu-suite --out DIR2 --minutes 5 --parts dali    NVDEC, colours, end to end with DALI, memory, contexts
    tubecell gpu-suite --out DIR --dry                        both sets at toy size on a CPU

DIR gets gpu_suite.json, gpu_suite.md and gpu_suite.log. The first two are written anew with every figure, so that a suite cut
off leaves what it had. Parts come one after the other, the most wanted first, until the minutes are over; one that does not fit
any more is named as not done. A part that fails is a result, with its traceback; one that crashes, hangs or loses the GPU
is killed and named, and the suite goes on behind it. `--parts` also takes the names of single parts, for a second try.

On a machine without a network, with one NVIDIA GPU, Python 3.12, torch >= 2.11 for CUDA 13, timm and triton, in two calls:

    1. Here: for each wheel that pyproject.toml asks for and that machine lacks, `pip download --no-deps --only-binary=:all:
       --python-version 3.12`: av, and what else "missing" is said of at the head of a report; for the second set also
       nvidia-dali-cuda130 and what it needs. Unpack the wheels into one folder SITE; pack that in parts as small as the way
       there asks for. What is compiled has to be for that Python: nothing is copied from this environment.
    2. There: bring the checkout and the parts, unpack them, and start the first call with a minute more than --minutes:
       PYTHONPATH=SITE python benchmarks/gpu_suite.py --out DIR --minutes 6 --commit "$(cat commit.txt)"
       The commit is asked for because what travels may be no git checkout. In containers NVDEC needs
       NVIDIA_DRIVER_CAPABILITIES=compute,utility,video.

Clips are encoded there, of moving textures, which decode like grainy footage. `--data DATASET`, of 64 clips and more, brings
real ones for training end to end.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Sequence
from types import FrameType

from benchmarks.gpu.notes import Notes
from benchmarks.gpu.plan import SETS, Part, chosen
from benchmarks.gpu.report import Report, assemble, write
from benchmarks.gpu.runner import Places, run_parts
from pipeline.storage.output_folder import refuse_dataset
from pipeline.version import git_commit

DRY_MINUTES = 20.0  # of a dry walk, which takes one: on a busy machine it must not be cut


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 when the suite went through, whatever its parts did; 2 when it cannot be as asked, 130 if stopped."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = command_line()
    if not arguments:
        parser.print_help()
        return 2
    options = parser.parse_args(arguments)
    try:
        check(options)
        parts = chosen(options.parts or (list(SETS) if options.dry else []))
        minutes = max(options.minutes, DRY_MINUTES) if options.dry else options.minutes
        report = measure(parts, options.out, minutes, options.data, options.dry, options.commit)
    except (ValueError, OSError) as error:
        print(f"gpu_suite: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu_suite: stopped; what was measured is written", file=sys.stderr)
        return 130
    for part in report["parts"]:
        print(f"{part['title']} ({part['name']}, {part['seconds']:.0f} s): {part['status']}")
    print(f"{report['seconds']:.0f} s: {options.out / 'gpu_suite.md'}")
    return 0


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = [*SETS, *(part.name for part in chosen(list(SETS)))]
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go; it is made")
    parser.add_argument("--minutes", type=float, default=6.0, help="for all of it, starts included (default: 6)")
    parser.add_argument("--parts", nargs="+", choices=names, metavar="PART", help=f"sets or parts: {', '.join(names)}")
    parser.add_argument("--data", type=Path, metavar="DATASET", help="of real clips, for end to end")
    parser.add_argument("--commit", help="of the checkout, where git does not know it")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at toy size: its figures mean nothing")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be. Raises ValueError."""
    if options.out is None:
        raise ValueError("give --out DIR, for the results")
    refuse_dataset("--out", options.out)
    if not options.minutes > 0:
        raise ValueError(f"--minutes {options.minutes:g}: it must be more than 0")
    if options.data is not None and not options.data.is_dir():
        raise ValueError(f"--data {options.data}: there is no such folder")


def measure(
    parts: Sequence[Part], out: Path, minutes: float, data: Path | None = None, dry: bool = False, commit: str | None = None
) -> Report:
    """Run the parts, and write what comes of them into `out`, again and again, until `minutes` are over."""
    began = time.time()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("gpu_suite.json", "gpu_suite.md", "gpu_suite.log"):
        (out / name).unlink(missing_ok=True)
    work = Path(tempfile.mkdtemp(prefix="tubecell-gpu-"))
    places = Places(out.resolve(), work, data.resolve() if data else None, dry)
    date = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began))
    facts = {"date": date, "commit": commit or git_commit(), "minutes": minutes, "dry": dry}
    before = signal.signal(signal.SIGTERM, _stop)

    def tell() -> Report:
        """What is known now, in DIR."""
        report = assemble(parts, Notes(places.notes).fresh(), {**facts, "seconds": time.time() - began})
        try:
            write(report, places.out)
        except Exception:  # how it is shown must not end the suite: the notes are kept
            shutil.copy(places.notes, places.out / "notes.jsonl")
            with places.log.open("a") as log:
                traceback.print_exc(file=log)
        return report

    try:
        run_parts(parts, places, began + 60 * minutes, tell)
        return tell()
    finally:
        signal.signal(signal.SIGTERM, before)
        tell()
        shutil.rmtree(work, ignore_errors=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
