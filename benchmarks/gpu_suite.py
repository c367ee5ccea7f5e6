#!/usr/bin/env python3
"""Everything about tubecell that only a GPU can show, unattended, in one command.

    tubecell gpu-suite --out DIR [--minutes 8] [--kit KIT] [--commit HASH]
    tubecell gpu-suite --prepare KIT [--videos FOLDER]      beforehand, on a machine that has everything
    tubecell gpu-suite --out DIR --dry                      every part at toy size on a CPU

DIR gets eight files: gpu_suite.json, gpu_suite.md (what to set, the tables, what is absent and why, what failed),
gpu_suite.log, decoding.png, steps.png, reconstruction.png, and the traces step.json.gz and end_to_end.json.gz. The first two
are written anew with every figure, so that a suite which is cut off leaves what it had.

Every part has a process of its own, and a share of the minutes; what it does not need goes to the others, at last to what had
been put off.
A measurement that fails is a result, with its traceback. One that crashes, hangs or loses the GPU is killed and named, and its
part goes on behind it. What the machine lacks is named beside the figures that are missing for it.

On a rented machine without a network, with one NVIDIA GPU, Python 3.12, torch >= 2.11 for CUDA 13, timm and triton:

    1. Here: pack the rest for it (nvidia-dali-cuda130, av, webdataset, braceexpand and what they need, as wheels unpacked into
       one folder SITE, in parts as small as the way there asks for), and `gpu_suite.py --prepare KIT --videos FOLDER` with real
       videos: clips in every encoding that is measured, and the pure Python packages that such a machine may lack.
    2. There: bring the checkout, the parts and KIT, unpack the parts, and start it once, with a minute more than --minutes:
       PYTHONPATH=SITE python benchmarks/gpu_suite.py --kit KIT --out DIR --minutes 8 --commit "$(cat commit.txt)"
       The commit is asked for because what travels may be no git checkout. In containers NVDEC needs
       NVIDIA_DRIVER_CAPABILITIES=compute,utility,video.
    3. Bring DIR back, change what "What to set" says, and run it again.

Without --kit it encodes clips of its own, of moving textures, which decode like grainy footage.
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
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

from benchmarks.gpu.notes import Notes
from benchmarks.gpu.plan import PARTS, Part
from benchmarks.gpu.report import Report, assemble, write
from benchmarks.gpu.supervisor import Places, put_off, supervise, time_for
from pipeline.machine import usable_cores
from pipeline.storage.output_folder import refuse_dataset
from pipeline.version import git_commit

SECOND_ROUND = 20.0  # seconds that must be left at the end for a part to be started again, for what there was no time for
DRY_MINUTES = 14.0  # of a dry walk, which takes half of one: on a busy machine it must not be cut


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
        if options.prepare:
            from benchmarks.gpu.kit import prepare  # PyAV

            prepare(options.prepare, options.videos)
            return 0
        chosen = [part for part in PARTS if not options.parts or part.name in options.parts]
        minutes = max(options.minutes, DRY_MINUTES) if options.dry else options.minutes
        report = measure(chosen, options.out, minutes, options.kit, options.dry, options.commit)
    except (ValueError, OSError) as error:
        print(f"gpu_suite: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu_suite: stopped; what was measured is written", file=sys.stderr)
        return 130
    for advice in report["recommendations"]:
        print(f"set {advice['setting']} = {advice['value']} (now {advice['now']}): {advice['why']}")
    counts = ", ".join(f"{len(report[kind])} {kind}" for kind in ("figures", "absent", "failures"))
    print(f"{counts} in {report['seconds']:.0f} s: {options.out / 'gpu_suite.md'}")
    return 0


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the results go; it is made")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it (default: 8)")
    parser.add_argument("--kit", type=Path, help="a folder that --prepare made")
    parser.add_argument("--commit", help="of the checkout, where git does not know it")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="only these")
    parser.add_argument("--dry", action="store_true", help="on a CPU, at toy size: its figures mean nothing")
    parser.add_argument("--prepare", type=Path, metavar="KIT", help="make a kit and exit")
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="of real videos, for --prepare")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuse what cannot be. Raises ValueError."""
    if (options.out is None) == (options.prepare is None):
        raise ValueError("give either --out DIR, to measure, or --prepare KIT, to make what a machine without a network lacks")
    refuse_dataset("--out" if options.out else "--prepare", options.out or options.prepare)
    if options.minutes <= 0:
        raise ValueError(f"--minutes {options.minutes:g}: it must be more than 0")
    for flag, folder in (("--kit", options.kit), ("--videos", options.videos)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"{flag} {folder}: there is no such folder")


def measure(
    parts: Sequence[Part], out: Path, minutes: float, kit: Path | None = None, dry: bool = False, commit: str | None = None
) -> Report:
    """Run the parts, and write what comes of them into `out`, again and again, until `minutes` are over."""
    began = time.time()
    out.mkdir(parents=True, exist_ok=True)
    for name in ("gpu_suite.json", "gpu_suite.md", "gpu_suite.log"):
        (out / name).unlink(missing_ok=True)
    work = Path(tempfile.mkdtemp(prefix="tubecell-gpu-"))
    places = Places(out.resolve(), work, kit.resolve() if kit else None)
    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began)),
        "commit": commit or git_commit(),
        "minutes": minutes,
        "dry": dry,
    }
    before = signal.signal(signal.SIGTERM, _stop)

    def tell(pictures: bool = False) -> Report:
        """What is known now, in DIR."""
        report = assemble(parts, Notes(places.notes).fresh(), {**facts, "seconds": time.time() - began})
        try:
            write(report, places.out)
            if pictures:
                from benchmarks.gpu.pictures import draw_all  # matplotlib takes a second, and may be missing

                draw_all(report, places.out)
        except Exception:  # how it is shown must not end the suite: the notes are kept
            shutil.copy(places.notes, places.out / "notes.jsonl")
            with places.log.open("a") as log:
                traceback.print_exc(file=log)
        return report

    try:
        last = began + 60 * minutes
        if dry:  # all at once, on as many cores as there are: nothing depends on their times
            with ThreadPoolExecutor(usable_cores()) as pool:
                list(pool.map(lambda part: supervise(part, places, last, dry, lambda: None), parts))
        else:
            for number, part in enumerate(parts):
                ends = time.time() + time_for(parts[number:], last - time.time())
                print(f"{part.title}: {max(0.0, ends - time.time()):.0f} s", flush=True)
                supervise(part, places, ends, dry, tell)
                tell(pictures=True)
            for part, names in put_off(parts, Notes(places.notes).fresh()):
                if time.time() < last - SECOND_ROUND:
                    print(f"{part.title}, with the {last - time.time():.0f} s that are left: {', '.join(names)}", flush=True)
                    supervise(part, places, last, dry, tell, names)
        return tell(pictures=True)
    finally:
        signal.signal(signal.SIGTERM, before)
        tell()
        shutil.rmtree(work, ignore_errors=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
