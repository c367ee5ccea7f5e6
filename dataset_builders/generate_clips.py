"""Make short videos of moving shapes, to try everything without any footage of one's own.

    tubecell generate-clips --out FOLDER [--clips 64] [--motions 8] [--seed 0] [--size 160x128] [--frames 90] [--fps 30]

FOLDER/MOTION/0000-SEED.mp4 ...: three seconds each, 30 frames per second, 160x128 pixels, a folder per motion. A textured shape
moves in the way that its folder names, over a textured background and beside a smaller one that drifts. No frame tells the
motion: place, angle and size of the shape are distributed alike in all of them, at every moment. The same options give the
same files; files that are there are kept.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import multiprocessing
from collections.abc import Sequence
from fractions import Fraction

import av

from dataset_builders.media.moving_shapes import MOTIONS, Film, draw
from pipeline.console import exit_status
from pipeline.machine import usable_cores
from pipeline.progress import Progress
from pipeline.storage.output_folder import refuse_dataset
from pipeline.storage.remote import on_disk

FEW = 20  # clips, drawn in less time than processes start


@exit_status()
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", required=True, type=on_disk, metavar="FOLDER")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="how many, shared among the motions (%(default)s)")
    parser.add_argument(
        "--motions", type=int, default=8, metavar="N", help=f"the first so many of: {', '.join(MOTIONS)} (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, other clips (%(default)s)")
    parser.add_argument("--size", default="160x128", metavar="WxH", help="of a frame in pixels (%(default)s)")
    parser.add_argument("--frames", type=int, default=90, metavar="N", help="of a clip (%(default)s)")
    parser.add_argument("--fps", default="30", metavar="N", help="frames a second (%(default)s)")
    args = parser.parse_args(arguments)
    if args.clips < 1 or args.seed < 0:
        raise ValueError(f"--clips {args.clips} --seed {args.seed}: at least 1 and 0 are needed")
    if not 1 <= args.motions <= len(MOTIONS):
        raise ValueError(f"--motions {args.motions}: it must be 1 to {len(MOTIONS)}")
    film = Film.parse(args.size, args.frames, args.fps)
    if not any((args.out / motion).is_dir() for motion in MOTIONS):  # else it was begun
        refuse_dataset("--out", args.out)
    made = generate(args.out, args.clips, args.seed, args.motions, film)
    print(f"{args.clips} clips of {min(args.clips, args.motions)} motions in {args.out}, {made} of them made now")


def generate(folder: Path, clips: int, seed: int, motions: int = 8, film: Film = Film()) -> int:  # noqa: B008 (immutable)
    """Make those of the clips that are missing; returns how many. Raises ValueError where some of another size or length are,
    OSError for the disk."""
    names = list(MOTIONS)[:motions]
    paths = [folder / names[number % motions] / f"{number // motions:04d}-{seed}.mp4" for number in range(clips)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    if there := next((path for path in paths if path.exists()), None):
        check_like(there, film)
    for motion in {paths[number].parent for number in missing}:
        motion.mkdir(parents=True, exist_ok=True)
        for leftover in motion.glob(".*.tmp"):  # of a killed run: named with its process
            if not Path("/proc", leftover.name.split(".")[-2]).exists():
                leftover.unlink(missing_ok=True)
    jobs = [(paths[number], paths[number].parent.name, (seed, number), film) for number in missing]
    if len(jobs) <= FEW:
        for job in jobs:
            draw(job)
        return len(jobs)
    # spawned: a fork server is one for a whole process, and others start theirs with what they need
    with multiprocessing.get_context("spawn").Pool(min(usable_cores(), len(jobs))) as pool:
        for _ in Progress(pool.imap_unordered(draw, jobs), total=len(jobs), unit="clip", desc="drawing clips"):
            pass
    return len(missing)


def check_like(path: Path, film: Film) -> None:
    """Raises ValueError for a clip of another size, length or rate: a folder holds clips of one kind."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        found = Film(stream.width, stream.height, stream.frames, stream.average_rate or Fraction(0))
    if found != film:
        what = [f"{each.width}x{each.height}, {each.frames} frames at {float(each.rate):g}/s" for each in (found, film)]
        raise ValueError(f"{path} is there, of {what[0]}, not of {what[1]}; give another --out")


if __name__ == "__main__":
    sys.exit(main())
