"""Build a dataset for pre-training from folders of raw video.

    python dataset_builders/build_unlabeled_hybrid.py --folder NAME=PATH [--folder NAME=PATH ...] --out DATASET

Every file below a folder is looked at, whatever it is called; it ends in DATASET/manifest.parquet, or in
DATASET/rejects.parquet with the reason. The build can be stopped at any moment and started again with the same command.
Started on a finished dataset it adds the files that are new, as a new version, and otherwise does nothing.
"""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent.parent)
sys.path[:] = [ROOT, *(path for path in sys.path if path not in (ROOT, str(Path(__file__).resolve().parent)))]

import argparse
import json
import os
import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from io import TextIOWrapper
from itertools import zip_longest
from typing import Any

import av
from tqdm import tqdm

from dataset_builders.clips import Clip, ClipMaker, ClipRequest
from dataset_builders.executors import map_ordered, usable_cores
from dataset_builders.folder import clip_key, list_files
from dataset_builders.jobs import BuildState, Job
from dataset_builders.transcode import PRESETS, EncodeOptions, ffmpeg_path
from dataset_builders.writer import ShardWriter, write_durably


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 if no clip could be taken, 2 for an error, 130 if stopped by ^C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files that are not UTF-8
    parser = arguments()
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 2
    args = parser.parse_args(argv)
    try:
        return build(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:  # a full disk, missing permissions, workers that cannot start
        print(f"error: {error}; finished shards are kept, run the same command again to go on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; finished shards are kept, run the same command again to go on", file=sys.stderr)
        return 130


def build(args: argparse.Namespace) -> int:
    """Plan, encode, write the manifest, say what happened."""
    options = EncodeOptions(args.preset, args.short_side, args.gop, args.min_frames)
    folders = check(args)
    dataset = Path(args.out)
    files = {name: list_files(folder, exclude=os.fsencode(dataset)) for name, folder in folders.items()}
    if not any(files.values()) and not dataset.exists():
        raise ValueError(f"there is no file in {', '.join(map(os.fsdecode, folders.values()))}")

    with BuildState(dataset) as state:
        state.agree_on_options({**asdict(options), "sampling": args.sampling, "clips_per_shard": args.clips_per_shard})
        jobs, vanished = state.plan(files, args.clips_per_shard)
        for name, paths in vanished.items():
            example = os.fsdecode(paths[0])
            print(f"{name}: {len(paths)} files of an earlier build are gone, such as {example!r}; their clips stay")
        if counts := state.finished(jobs):
            print(f"{dataset} is complete: {counts['clips']} clips, {counts['rejects']} rejects; nothing to do")
            return 0 if counts["clips"] else 1

        encode(state, [job for job in jobs if not state.is_done(job)], folders, options, args)
        rows, rejects, versions = write_tables(state, jobs, folders, options, args)
        state.finish(jobs, rows, rejects)
        summarise(dataset, rows, rejects, versions)
        return 0 if rows else 1


def encode(
    state: BuildState, jobs: list[Job], folders: dict[str, bytes], options: EncodeOptions, args: argparse.Namespace
) -> None:
    """Turn every unfinished job into a shard and commit it."""
    for job in jobs:
        if job.source not in folders:
            raise ValueError(f"shard {job.name} is not finished; name its folder, too: --folder {job.source}=PATH")
    os.environ["IMAGEIO_FFMPEG_EXE"] = ffmpeg_path()  # for the workers: each would search, and try it out
    requests = [request for job in jobs for request in clip_requests(job, folders[job.source], args.sampling)]
    workers = min(args.workers, len(requests))
    results = map_ordered(ClipMaker(options), requests, workers, args.time_limit, int(args.memory_limit * 2**30))
    remaining = iter(requests)
    with closing(results), tqdm(total=len(requests), unit="clip", desc="encoding", disable=None) as progress:
        for job in jobs:
            writer = ShardWriter(state.dataset, job.name)
            rejects = []
            try:
                for request, result in zip((next(remaining) for _ in job.paths), results, strict=False):
                    if isinstance(result, Clip):
                        writer.add(result)
                    else:
                        columns = {"path": request.path, "source": request.source}
                        rejects.append({**columns, "reason": str(result.reason), "detail": result.detail})
                    progress.update()
                rows = writer.finish()
            except BaseException:
                writer.abandon()
                raise
            state.commit(job, rows, rejects)


def clip_requests(job: Job, folder: bytes, sampling: str) -> Iterator[ClipRequest]:
    """What a job asks of the workers, in the order of its shard."""
    for path in job.paths:
        yield ClipRequest(folder, path, job.source, clip_key(job.source, path), sampling=sampling)


def write_tables(
    state: BuildState, jobs: list[Job], folders: dict[str, bytes], options: EncodeOptions, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """rejects.parquet, manifest.parquet, dataset.json; returns rows, rejects and versions."""
    from pipeline.manifest import write_manifest  # here, because workers import this file and need no pyarrow

    rows, rejects = state.results(jobs)
    versions: list[dict[str, Any]] = write_manifest(state.dataset, rows, rejects)
    file = state.dataset / "dataset.json"
    before = json.loads(file.read_bytes()) if file.exists() else {"sources": {}, "versions": []}
    sources = before["sources"] | {name: {"folder": os.fsdecode(folder)} for name, folder in folders.items()}
    taken, dropped = Counter(row["source"] for row in rows), Counter(reject["source"] for reject in rejects)
    for name, source in sources.items():
        source |= {"taken": taken[name], "rejected": dropped[name]}
    tools = tool_versions()
    known = [version["tools"] for version in before["versions"][: len(versions)]]  # older ones keep what they were made with
    description = {
        "sources": sources,
        "options": {**asdict(options), "sampling": args.sampling, "clips_per_shard": args.clips_per_shard},
        "versions": [{**version, "tools": made_with} for version, made_with in zip_longest(versions, known, fillvalue=tools)],
        "rejects": dict(sorted(Counter(reject["reason"] for reject in rejects).items())),
    }
    write_durably(file, (json.dumps(description, indent=1) + "\n").encode())
    return rows, rejects, versions


def tool_versions() -> dict[str, str]:
    """The programs and libraries that a clip's bytes depend on."""
    banner = subprocess.run([ffmpeg_path(), "-version"], capture_output=True, text=True, check=True).stdout
    return {
        "tubecell": tomllib.loads(Path(ROOT, "pyproject.toml").read_text())["project"]["version"],
        "ffmpeg": banner.splitlines()[0],
        "av": av.__version__,
        "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
    }


def summarise(dataset: Path, rows: list[dict[str, Any]], rejects: list[dict[str, Any]], versions: list[dict[str, Any]]) -> None:
    """What a user wants to know at the end."""
    size = sum(row["size"] for row in rows)
    hours = sum(row["duration"] for row in rows) / 3600
    print(f"taken     {len(rows):>8} clips, {hours:.2f} hours, {size / 2**20:,.1f} MiB")
    print(f"rejected  {len(rejects):>8} files")
    for reason, count in Counter(reject["reason"] for reject in rejects).most_common():
        example = next(reject for reject in rejects if reject["reason"] == reason)
        print(f"  {reason:<16} {count:>4}  such as {os.fsdecode(example['path'])!r}: {example['detail']}")
    print(f"dataset   {dataset} (version {len(versions)}: manifest.parquet, rejects.parquet, dataset.json, shards/)")
    if not rows:
        print("there is no clip to train on: see the reasons above", file=sys.stderr)


def check(args: argparse.Namespace) -> dict[str, bytes]:
    """{name: folder}; raises ValueError for arguments that cannot work."""
    from pipeline.manifest import parse_sampling

    folders: dict[str, bytes] = {}
    for text in args.folder:
        name, equals, path = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name):
            wanted = "NAME=PATH, where NAME has 1 to 40 letters, digits, '_' or '-'"
            raise ValueError(f"--folder {text!r}: it must be {wanted}")
        if name in folders:
            raise ValueError(f"--folder: the name {name!r} is given twice")
        if not os.path.isdir(path):
            raise ValueError(f"--folder {text!r}: there is no folder {path!r}")
        folders[name] = os.fsencode(os.path.abspath(path))
    parse_sampling(args.sampling)
    limits = {"short-side": (16.0, 4320.0), "gop": (1, 1000), "min-frames": (1, 10**6), "clips-per-shard": (1, 10**6)}
    limits |= {"workers": (1, 4096), "time-limit": (1, 10**7), "memory-limit": (0.5, 10**4)}
    for option, (low, high) in limits.items():
        value = getattr(args, option.replace("-", "_"))
        if not low <= value <= high:
            raise ValueError(f"--{option} {value:g}: allowed are {low:g} to {high:g}")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise ValueError(f"--out {args.out}: is a file; a folder is needed")
    return folders


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    defaults = EncodeOptions()
    add = parser.add_argument
    add("--folder", action="append", required=True, metavar="NAME=PATH", help="a folder of videos and a name for it")
    add("--out", required=True, metavar="DATASET", help="folder of the dataset; made if it does not exist")
    encoding = parser.add_argument_group("what a clip becomes (fixed for a dataset once it is begun)")
    add = encoding.add_argument
    add("--preset", choices=list(PRESETS), default=defaults.preset, help="h264-fast re-encodes for fast decoding (default)")
    add("--short-side", type=int, default=defaults.short_side, metavar="PIXELS", help="never enlarged (%(default)s)")
    add("--gop", type=int, default=defaults.gop, metavar="FRAMES", help="between key frames, at most (%(default)s)")
    add("--min-frames", type=int, default=defaults.min_frames, metavar="FRAMES", help="shorter ones are rejected (%(default)s)")
    add(
        "--sampling",
        default="seconds:0.133333",
        metavar="RULE",
        help="distance of the frames that training takes: seconds:S or stride:N (%(default)s: 4 frames at 30 per second)",
    )
    add("--clips-per-shard", type=int, default=500, metavar="N", help="files that make one shard (%(default)s)")
    running = parser.add_argument_group("how the build runs")
    add = running.add_argument
    add("--workers", type=int, default=usable_cores(), metavar="N", help="processes; the cores this one may use (%(default)s)")
    add("--time-limit", type=float, default=900, metavar="SECONDS", help="for one file (%(default)s)")
    add("--memory-limit", type=float, default=4, metavar="GIB", help="for one file (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
