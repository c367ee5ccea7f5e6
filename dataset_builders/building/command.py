"""The command line that the three entry points share: flags or a TOML file -> a `Build`, and what to do with it.

out = "DATASET"                       # BUILD.toml: relative paths are relative to it
preset = "h264-fast"                  # any option of the command line, with _ for -
[sources.k710]
kind = "kinetics"
leaks = "from-train"
400 = {folder = "/data/k400", lists = "/data/k400/annotations"}
700 = {folder = ["/data/k700/train", "/nas/k700/val"], lists = ["/data/k700_train.csv", "/data/k700_val.csv"]}
[sources.own]
kind = "folder"
folder = "/data/own/train"
val = "/data/own/val"                 # likewise test; of the kinds folder, frames and index
labels_from_folder = true
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from dataset_builders.building.build import finish_shares, run, show_plan
from dataset_builders.building.repair import repair_failures
from dataset_builders.building.request import Build, Limits
from dataset_builders.media.geometry import parse_canvas
from dataset_builders.media.presets import PRESETS, EncodeOptions
from dataset_builders.media.rejects import MACHINE, Reason, retried
from dataset_builders.sources.annotations import SPLITS
from dataset_builders.sources.kinds import DETECTION, KINDS, PLACES, VERSIONS, Source, make_source
from pipeline.console import open_streams
from pipeline.machine import usable_cores
from pipeline.settings import renamed, toml_table, translated
from pipeline.storage import remote
from pipeline.storage.files import cache_folder
from pipeline.storage.manifest import parse_sampling
from pipeline.storage.output_folder import is_dataset, is_run, lies_in, refusal, refuse_dataset, refuse_sources

WITHOUT_BOXES = tuple(kind for kind in KINDS if kind not in DETECTION)
# flags that take VIDEOS LISTS -> the source's kind; its name is the flag's
OFFICIAL_FLAGS = {"ssv2": "something", "ssv1": "something"} | {
    name: name for name in ("ava", "webvid", "msrvtt", "msvd", "ucf101", "hmdb51")
}
OFFICIAL_FLAGS |= {name: name for name in DETECTION}
CALLED = {"ava-boxes": "ava"}  # flags, by another name where no other kind has that
# flags that take NAME=PATH -> the source's kind
NAMED_FLAGS = {"folder": "folder", "instagram": "instagram", "frames": "frames", "list": "lists", "index": "index"}
BOUNDS: dict[str, tuple[float, float]] = {"short_side": (16, 4320), "gop": (1, 1000), "min_frames": (1, 10**6)}
BOUNDS |= {"max_seconds": (1, 10**6), "clips_per_shard": (1, 10**6), "workers": (1, 4096)}
BOUNDS |= {"time_limit": (1, 10**7), "memory_limit": (0.5, 10**4)}
ENCODING = ("preset", "short_side", "gop", "canvas", "max_seconds", "min_frames")
RUNNING = ("workers", "time_limit", "memory_limit")
OPTIONS = ("out", "work", *ENCODING, *RUNNING, "clips_per_shard", "drop_duplicates")
LABELLED = ("folder", "frames", "instagram")  # flags of sources whose folders may name classes
NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")


def command(
    argv: list[str] | None,
    *,
    description: str | None,
    splits: Collection[str],
    kinds: Collection[str] = WITHOUT_BOXES,
    one_source: bool = False,
    more: "More | None" = None,
) -> int:
    """Returns the exit status: 0 done, 1 if no clip could be taken, 2 for an error, 130 if stopped by ^C. `more` is what a
    command does besides."""
    open_streams()
    parser = arguments(description, kinds)
    if more:
        more.add_arguments(parser)
    if not (sys.argv[1:] if argv is None else argv):
        parser.print_help()
        return 2
    args = parser.parse_args(translated(sys.argv[1:] if argv is None else argv))
    try:
        build = make_build(args, splits, kinds)
        if one_source and len(build.sources) != 1:
            raise ValueError(f"one source is wanted, {len(build.sources)} were given; several make a hybrid")
        if more:
            more.check(args)
        if args.repair:
            if args.plan or args.job or args.finish or args.ray or args.retry:
                raise ValueError("--repair goes without --plan, --job, --finish, --ray and --retry")
            return repair_failures(build, Path(args.repair))
        retry = retried(args.retry)
        if args.plan:
            return show_plan(build)
        status = finish_shares(build) if args.finish else run(build, _share(args.job), args.ray, retry)
        return more.afterwards(build, args) if more and not status and not args.job else status
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:  # a full disk, missing permissions, workers that cannot start
        print(f"error: {error}; finished shards are kept, run the same command again to go on", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; finished shards are kept, run the same command again to go on", file=sys.stderr)
        return 130


class More(Protocol):
    """What a command does besides: once the manifest is there."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def check(self, args: argparse.Namespace) -> None:
        """Before anything is done. Raises ValueError."""

    def afterwards(self, build: Build, args: argparse.Namespace) -> int:
        """Returns the exit status. Raises ValueError, OSError and RuntimeError."""
        ...


def make_build(args: argparse.Namespace, splits: Collection[str], kinds: Collection[str]) -> Build:
    """Flags over the TOML file's values over the defaults. Raises ValueError for what cannot work."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    table, base = _read_toml(Path(args.config)) if args.config else ({}, Path.cwd())
    sources: list[Source] = []
    sampling = table.pop("sampling", None)
    for rule in (sampling, given.get("sampling")):
        if rule is not None:
            parse_sampling(str(rule))
    for name, entry in table.pop("sources", {}).items():
        if not NAME.fullmatch(name):
            raise ValueError(f"{args.config}: the source name {name!r} must have 1 to 40 letters, digits, '_' or '-'")
        kind = entry.pop("kind", "")
        if (rule := given.get("sampling", entry.get("sampling", sampling))) is not None:
            entry["sampling"] = rule
        sources.append(make_source(name, kind, entry, base, splits, f"{args.config}, source {name}"))
    sources += _sources_of_flags(({} if sampling is None else {"sampling": sampling}) | given, splits)
    if len({source.name for source in sources}) < len(sources):
        repeated = next(source.name for i, source in enumerate(sources) if source.name in {s.name for s in sources[:i]})
        raise ValueError(f"the source name {repeated!r} is given twice")
    if not sources:
        raise ValueError("there is no source: give --folder NAME=PATH or another of the flags of sources (see --help)")
    for source in sources:
        if source.kind not in kinds:
            raise ValueError(f"source {source.name} is of kind {source.kind!r}; this command builds {', '.join(kinds)}")
    if unknown := [name for name in table if name not in OPTIONS]:
        allowed = ", ".join([*OPTIONS, "sampling", "sources"])
        raise ValueError(f"{args.config}: {', '.join(unknown)} is not known; allowed are {allowed}")
    options = {name: value for name, value in (table | given).items() if name in OPTIONS}
    places = {name: options.pop(name, None) for name in ("out", "work")}
    if not places["out"]:
        raise ValueError("--out DATASET is missing: the folder, or the URL, that the dataset shall be in")
    for name, value in places.items():
        if value is not None and not remote.is_url(value):
            places[name] = os.path.abspath(value if name in given else base / value)
    out, url = _place(places["out"], places["work"])
    if url and args.ray not in (None, "local") and places["work"] is None:
        raise ValueError(f"--ray {args.ray} with --out {url} needs --work: a folder that every node sees under the same path")
    for name, (low, high) in BOUNDS.items():
        value = options.get(name, low)
        if not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"--{name.replace('_', '-')} {value}: allowed are {low:g} to {high:g}")
    if "preset" in options and options["preset"] not in PRESETS:
        raise ValueError(f"--preset {options['preset']!r} is not known; allowed are {', '.join(PRESETS)}")
    if "canvas" in options:
        parse_canvas(options["canvas"])
    _check_place(None if url and places["work"] is None else "--work" if url else "--out", out, url, sources)
    encoding = EncodeOptions(**{name: options.pop(name) for name in ENCODING if name in options})
    limits = Limits(**{name: options.pop(name) for name in RUNNING if name in options})
    return Build(out=out, url=url, sources=tuple(sources), encoding=encoding, limits=limits, **options)


def _place(out: str, work: str | None) -> tuple[Path, str | None]:
    """--out and --work -> (the folder to build in, the URL if the dataset shall lie behind one)."""
    url = remote.as_url(out) if remote.is_url(out) else None
    if url and url.startswith(("http://", "https://")):
        raise ValueError(f"--out {url}: web servers are only read from; write to s3://, gs:// or the like")
    if work and not url:
        raise ValueError(f"--work {work}: is for --out URL; a dataset in a folder has its state with it")
    if work and remote.is_url(work):
        raise ValueError(f"--work {work}: is a URL; a folder on a local disk is needed")
    if url and not work:
        digest = hashlib.blake2b(url.encode(), digest_size=6).hexdigest()
        work = str(cache_folder() / "builds" / digest / url.rpartition("/")[2])
    folder = Path(work or out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--{'work' if url else 'out'} {folder}: is a file; a folder is needed")
    return folder, url


def _check_place(flag: str | None, out: Path, url: str | None, sources: Sequence[Source]) -> None:
    """Raises ValueError if a build would fill a source's folder, another dataset or a run, or a source is the whole disk.

    What was begun goes on: a dataset where it lies, with the sources that it has. `flag` says what `out` is; None for a work
    folder in the user's cache, which lies where nobody chose it.
    """
    options = out / ".build" / "options.json"
    begun = json.loads(options.read_bytes())["sources"] if options.exists() else {}
    places: dict[str, str | Path] = ({flag: out} if flag else {}) | ({"--out": url} if url else {})
    if not is_dataset(out):
        if is_run(out):
            raise refusal(flag or "--work", out, out, "a training run")
        for name, place in places.items():
            refuse_dataset(name, place)
    for source in sources:
        if source.name in begun:
            continue
        folders = source.searched()
        for folder in folders.values():
            where = f"source {source.name}: {os.fsdecode(folder)}"
            if os.path.exists(folder) and os.path.samefile(folder, "/"):
                raise ValueError(f"{where} is the whole file system, and every file of it would be listed; give a folder in it")
            if any(lies_in(folder, out / name) for name in ("shards", ".build")):
                raise ValueError(f"{where} is where the build writes; give another folder, or another --out")
        for name, place in places.items():
            refuse_sources(name, place, folders)


def _read_toml(file: Path) -> tuple[dict[str, Any], Path]:
    table = toml_table(file)
    sources = table.get("sources", {})
    if not isinstance(sources, Mapping) or not all(isinstance(source, Mapping) for source in sources.values()):
        raise ValueError(f"--config {file}: sources must be tables, such as [sources.own]")
    table["sources"] = {name: renamed(source, str(file)) for name, source in sources.items()}
    return renamed(table, str(file)), file.resolve().parent


def _sources_of_flags(given: Mapping[str, Any], splits: Collection[str]) -> list[Source]:
    here = Path.cwd()
    common: dict[str, Any] = {"sampling": given["sampling"]} if "sampling" in given else {}
    if "labels_from_folder" in given and not any(flag in given for flag in LABELLED):
        flags = ", ".join(f"--{flag}" for flag in LABELLED)
        raise ValueError(f"--labels-from-folder: is for {flags}; in a TOML file a source has labels_from_folder = true")
    if given.get("list_root") and "list" not in given:
        raise ValueError(f"--list-root {given['list_root']}: is for --list; in a TOML file a source has folder = ...")
    found = []
    versions = {version: given[f"k{version}"] for version in VERSIONS if f"k{version}" in given}
    if versions:
        table: dict[str, Any] = {}
        for version, pairs in versions.items():
            folders, lists = (list(dict.fromkeys(given)) for given in zip(*pairs, strict=True))
            table[version] = {"folder": folders, "lists": lists}
        table |= {name: given[name] for name in ("leaks", "label_map") if name in given}
        found.append(make_source("kinetics", "kinetics", table | common, here, splits, "--k" + ", --k".join(versions)))
    for flag, kind in OFFICIAL_FLAGS.items():
        called = CALLED.get(flag, flag)
        if len(pairs := given.get(flag.replace("-", "_"), [])) > 1:
            raise ValueError(f"--{called} is given {len(pairs)} times; one VIDEOS may hold several folders, or links to them")
        for folder, lists in pairs:
            table = {"folder": folder, "lists": lists, **common}
            if kind in DETECTION:
                own = ("actions", "evaluated", "rate", *(["trimmed"] if kind == "ava-boxes" else []))
                table |= {name: given[name] for name in own if name in given}
            found.append(make_source(called, kind, table, here, splits, f"--{called}"))
    for flag, kind in NAMED_FLAGS.items():
        tables: dict[str, dict[str, Any]] = {}
        for text in given.get(flag, ()):
            name, split, value = _named(flag, text)
            table = tables.setdefault(name, dict(common))
            if kind == "lists":
                table.setdefault(split, []).append(value)
                continue
            key = split if split != "train" else PLACES.get(kind, "folder")
            if key in table:
                apart = f"; a folder for another split is {name}:val=PATH" if kind in PLACES else ""
                raise ValueError(f"--{flag} {text!r}: the source name {name!r} is given twice{apart}")
            table[key] = value
        for name, table in tables.items():
            if kind == "lists" and given.get("list_root"):
                table["folder"] = given["list_root"]
            if kind == "frames":
                table["rate"] = given["frame_rate"]
            if flag in LABELLED and "labels_from_folder" in given:
                table["labels_from_folder"] = True
            found.append(make_source(name, kind, table, here, splits, f"--{flag} {name}"))
    return found


def _named(flag: str, text: str) -> tuple[str, str, str]:
    """NAME=PATH or NAME:SPLIT=PATH -> name, split, path."""
    source, equals, value = text.partition("=")
    name, colon, split = source.partition(":")
    if not equals or not NAME.fullmatch(name) or not value:
        raise ValueError(f"--{flag} {text!r}: it must be NAME=PATH, where NAME has 1 to 40 letters, digits, '_' or '-'")
    if colon and (split not in SPLITS or flag == "instagram"):
        allowed = "its videos are all for training" if flag == "instagram" else f"allowed are {', '.join(SPLITS)}"
        raise ValueError(f"--{flag} {text!r}: there is no split {split!r}; {allowed}")
    if flag in LABELLED and not remote.is_url(value) and not os.path.isdir(value):
        raise ValueError(f"--{flag} {text!r}: there is no folder {value!r}")
    return name, split or "train", value


def _share(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--job {text!r}: it must be I/N with 1 <= I <= N, such as 2/8 for the second of eight shares")
    return int(found[1]), int(found[2])


def arguments(description: str | None, kinds: Collection[str]) -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    place = "folder of the dataset, made if it does not exist, outside of the sources' folders; or a URL: s3://bucket/dataset"
    add("--out", metavar="DATASET", help=place)
    add("--config", metavar="BUILD.toml", help="a whole build as a file: see dataset_builders/building/command.py")
    add("--plan", action="store_true", help="print what would be read, taken, cut, dropped and written, and do nothing")

    what = "sources (VIDEOS: a folder, it may lack files; LISTS: a file, or a folder of official ones)"
    add = parser.add_argument_group(what).add_argument
    pair = ("VIDEOS", "LISTS")
    if "kinetics" in kinds:
        for version in VERSIONS:
            more = "; again for another folder of it" if version == VERSIONS[0] else ""
            add(f"--k{version}", nargs=2, action="append", metavar=pair, help=f"Kinetics-{version}{more}")
        leaks = "ids in training and in validation or test leave training (default), or validation (the paper)"
        add("--leaks", choices=["from-train", "from-val"], help=leaks)
        add("--label-map", metavar="FILE", help="the official class names of Kinetics-710, in their order")
    for flag, kind in OFFICIAL_FLAGS.items():
        if kind in kinds:
            called = CALLED.get(flag, flag)
            add(f"--{flag if called in kinds else called}", nargs=2, action="append", metavar=pair, dest=flag.replace("-", "_"))
    for flag, text in (
        ("folder", "a folder of videos and a name for it; NAME:val=PATH, NAME:test=PATH for those splits of it"),
        ("instagram", "a folder of Instagram videos; 250,000 are chosen"),
        ("list", "a VideoMAE list: 'path label' or 'path start total', or a CSV with a header; NAME:val=PATH as above"),
        ("frames", "a folder of folders of images; NAME:val=PATH as above"),
    ):
        if NAMED_FLAGS[flag] in kinds:
            add(f"--{flag}", action="append", metavar="NAME=PATH", help=text)
    if "lists" in kinds:
        root = "the folder of all that --list names, which is looked through; without it, paths are relative to the list's own"
        add("--list-root", metavar="PATH", help=root)
        add("--frame-rate", type=float, default=30.0, metavar="FPS", help="that --frames were extracted at (%(default)s)")
    if "folder" in kinds:
        labels = "the folder that a file of --folder or --instagram lies in, or --frames' folders of images, names its class"
        add("--labels-from-folder", action="store_true", default=None, help=labels)
    if "index" in kinds:
        tars = "existing tars, indexed in place: 'own=/data/{000..999}.tar', or of s3://... or https://..."
        add("--index", action="append", metavar="NAME=PATTERN", help=tars)

    defaults, limits = EncodeOptions(), Limits()
    add = parser.add_argument_group("what a clip becomes (fixed for a dataset once it has a shard)").add_argument
    add("--preset", choices=list(PRESETS), help=f"{defaults.preset} re-encodes for fast decoding (default)")
    add("--short-side", type=int, metavar="PIXELS", help=f"never enlarged ({defaults.short_side})")
    add("--gop", type=int, metavar="FRAMES", help=f"between key frames, at most ({defaults.gop})")
    add("--canvas", metavar="WxH,...", help="scale and crop every clip to the nearest of these sizes")
    add("--max-seconds", type=float, metavar="S", help=f"longer videos are cut into equal clips ({defaults.max_seconds:g})")
    add("--min-frames", type=int, metavar="FRAMES", help=f"shorter ones are rejected ({defaults.min_frames})")
    add("--sampling", metavar="RULE", help="distance of the frames that training takes, seconds:S or stride:N, of all sources")
    clips = Build.__dataclass_fields__["clips_per_shard"].default
    twice = "leave out files with the bytes of another one, which they may leak to; reads those of equal sizes once more"
    add("--drop-duplicates", action="store_true", default=None, help=twice)
    add("--clips-per-shard", type=int, metavar="N", help=f"about how many make one shard ({clips})")
    add = parser.add_argument_group("how the build runs").add_argument
    add("--workers", type=int, metavar="N", help=f"processes; the cores this one may use ({usable_cores()})")
    add("--time-limit", type=float, metavar="SECONDS", help=f"for one file ({limits.time_limit:g})")
    add("--memory-limit", type=float, metavar="GIB", help=f"for one file ({limits.memory_limit:g})")
    work = "for --out URL: local folder for a few unfinished shards and the state (default: in the user's cache folder)"
    add("--work", metavar="DIR", help=work)
    add("--job", metavar="I/N", help="do the I-th of N shares, for Slurm arrays and the like; then, once, --finish")
    add("--finish", action="store_true", help="write manifest and report after all shares of --job")
    repair = "look at the clips in a training run's failures.jsonl, and make shards anew that are damaged (see repair.py)"
    add("--repair", metavar="FILE", help=repair)
    retry = "reasons (see rejects.parquet) whose rejects are tried again; all; none. Those that may lie with the machine are "
    retry += f"tried once more by every build: {', '.join(reason for reason in Reason if reason in MACHINE)}"
    add("--retry", nargs="+", metavar="REASON", help=retry)
    add("--ray", metavar="ADDRESS", help="run the shards on a Ray cluster, or 'local'")
    return parser
