"""Recheck a finished dataset: is it still what its manifest says, and if not, which clip is wrong and how is it repaired?

    tubecell verify DATASET [--sample N | --failures RUN/failures.jsonl] [--no-decode]

Looked at: versions and fingerprints of the manifest, dataset.json, each shard's tar headers and DALI index, and of each clip
the tar member it lies in, its bytes (content hash), the JSON beside it, and what it decodes to, whole and as training takes it.
Of shards behind a URL only the clips: their bytes and what they decode to.
"""

import argparse
import json
import shlex
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from dataset_builders.checking.shard_checker import Checker, ClipTask, Fault, Finding, ShardTask, is_ours, is_remote
from dataset_builders.executors import Failure, map_ordered
from dataset_builders.pages.counts import counted
from pipeline.console import check_printed, exit_status
from pipeline.keyed import sample_rows
from pipeline.machine import usable_cores
from pipeline.progress import Progress
from pipeline.storage import files
from pipeline.storage.columns import iter_rows
from pipeline.storage.manifest import read_versions
from pipeline.storage.manifest_writer import SCHEMA, Fingerprint
from pipeline.storage.remote import is_url

BATCH = 4096  # rows of the manifest that are held as Python objects at once, about 2 kB each
SHOWN_PER_SHARD = 20  # findings; a shard with more is rotten as a whole


def recheck(
    dataset: Path,
    sample: int | None = None,
    workers: int | None = None,
    *,
    decode: bool = True,
    keys: frozenset[str] | None = None,
    time_limit: float = 900,
    memory_limit: float = 4,
) -> Iterator[Finding]:
    """Everything that is wrong with DATASET, as it is found.

    `sample` looks at that many clips, always the same ones, and the shards they lie in; `keys` at those clips; otherwise all.
    `decode=False` leaves it at hashes and headers. Limits are for one clip, in seconds and GiB. Raises ValueError if there
    is no manifest of a known format.
    """
    manifest = dataset / "manifest.parquet"
    if not manifest.is_file():
        raise ValueError(f"{dataset} has no manifest.parquet: it is no dataset, or its build is not finished (run it again)")
    versions = read_versions(manifest)
    try:
        yield from _check_description(dataset, versions)
        yield from _check_fingerprints(manifest, versions)
        rows = pq.read_table(manifest, columns=["shard", "size"])
        # clips that are there; of removed ones no shard needs to tell
        shards = dict.fromkeys(pc.unique(rows["shard"]).to_pylist(), 0) | counted(rows.filter(pc.field("size") != 0)["shard"])
    except (pa.ArrowException, OSError) as error:
        yield Finding(Fault.DATASET, "", "", "a manifest.parquet that can be read", str(error).splitlines()[0])
        return
    remote = {shard for shard in shards if is_remote(dataset, shard)}
    missing = {shard for shard in shards if shard not in remote and not (dataset / shard).is_file()}
    for shard, clips in shards.items():
        if shard in missing and clips:
            yield Finding(Fault.SHARD, shard, "", f"a tar with {clips} clips", "no such file")
    total = versions[-1]["rows"]
    wanted = None if sample is None else sample_rows(total, sample, versions[-1]["fingerprint"])
    number = len(keys) if keys is not None else total if wanted is None else len(wanted)
    unknown = set(keys or ())
    issued: deque[ShardTask | ClipTask] = deque()

    def tasks() -> Iterator[ShardTask | ClipTask]:
        """Each shard, but for remote ones, before the first of its clips; those in missing shards are left out."""
        seen = missing | remote
        for row in _rows(manifest, wanted, keys):
            unknown.discard(row["key"])
            if row["shard"] not in seen:
                seen.add(row["shard"])
                issued.append(ShardTask(row["shard"], shards[row["shard"]]))
                yield issued[-1]
            if row["shard"] not in missing:
                issued.append(ClipTask(row))
                yield issued[-1]

    workers = min(workers or usable_cores(), max(1, number))
    results = map_ordered(Checker(str(dataset), decode), tasks(), workers, time_limit, int(memory_limit * 2**30))
    with closing(results), Progress(total=number, unit="clip", desc="rechecking") as progress:
        for findings in results:
            if findings is None:
                progress.update(isinstance(issued.popleft(), ClipTask))
                continue
            for finding in findings:
                yield _lost(issued[0], finding) if isinstance(finding, Failure) else finding
    for key in sorted(unknown):
        other = "none: the run was on another dataset, or a newer version"
        yield Finding(Fault.UNKNOWN_KEY, "", key, "a clip of this dataset", other)


def _lost(task: ShardTask | ClipTask, failure: Failure) -> Finding:
    """A task whose worker did not come back."""
    found = f"{failure.reason}: {failure.detail}"
    if isinstance(task, ShardTask):
        return Finding(Fault.TAR, task.shard, "", "a tar that can be read", found)
    return Finding(Fault.DECODING, task.row["shard"], task.row["key"], f"{task.row['num_frames']} frames", found)


def _rows(manifest: Path, places: np.ndarray | None, keys: frozenset[str] | None) -> Iterator[dict[str, Any]]:
    """The rows at these places, those of these clips, or all."""
    value_set = pa.array(sorted(keys), pa.string()) if keys is not None else None
    first = 0
    for batch in iter_rows(manifest, SCHEMA.names, BATCH):
        following = first + len(batch)
        if places is not None:
            inside = places[np.searchsorted(places, first) : np.searchsorted(places, following)] - first
            batch = batch.take(pa.array(inside))
        elif value_set is not None:
            batch = batch.filter(pc.is_in(batch["key"], value_set=value_set))
        yield from batch.to_pylist()
        first = following


def _check_fingerprints(manifest: Path, versions: list[dict[str, Any]]) -> Iterator[Finding]:
    columns = ["key", "content_hash", "num_frames", "fps", "width", "height", "rotation", "source", "sampling"]
    rows = pq.read_table(manifest, columns=columns)
    if len(rows) != versions[-1]["rows"]:
        yield Finding(Fault.DATASET, "", "", f"{versions[-1]['rows']} rows of the manifest", f"{len(rows)}")
        return
    fingerprint, first = Fingerprint(), 0
    for number, version in enumerate(versions, 1):
        for batch in rows.slice(first, version["rows"] - first).to_batches(1 << 16):
            fingerprint.update(pa.Table.from_batches([batch]))
        first = version["rows"]
        if (found := fingerprint.hexdigest()) != version["fingerprint"]:
            expected = f"version {number} with fingerprint {version['fingerprint']}"
            yield Finding(Fault.FINGERPRINT, "", "", expected, f"rows with {found}")


def _check_description(dataset: Path, versions: list[dict[str, Any]]) -> Iterator[Finding]:
    """dataset.json says the same of versions and sources as the manifest."""
    try:
        description = json.loads((dataset / "dataset.json").read_bytes())
    except (OSError, ValueError) as error:
        yield Finding(Fault.DATASET, "", "", "a dataset.json that can be read", str(error))
        return
    told = [(entry.get("rows"), entry.get("fingerprint")) for entry in description.get("versions", [])]
    held = [(entry["rows"], entry["fingerprint"]) for entry in versions]
    if told != held:
        yield Finding(Fault.DATASET, "", "", f"versions {held}, as in the manifest", f"dataset.json has {told}")
    taken = counted(pq.read_table(dataset / "manifest.parquet", columns=["source"])["source"])
    for name, source in description.get("sources", {}).items():
        stated = source.get("clips", source.get("taken"))
        if stated is not None and stated != taken.get(name, 0):
            yield Finding(Fault.DATASET, "", "", f"{taken.get(name, 0)} clips of source {name}", f"dataset.json has {stated}")


def repair(dataset: Path, finding: Finding) -> str:
    """What to do about it: a shell command, or a sentence."""
    again = "run the command that built the dataset again"
    if finding.what is Fault.UNKNOWN_KEY:
        return "nothing is wrong with this dataset; give the one that the run was trained on"
    why = "the bytes are those of the build: the decoder has changed since (dataset.json says with which versions it was built)"
    if finding.what is Fault.REMOVED and not is_ours(finding.shard):
        return "run the command of `tubecell subset` again, which leaves it out"
    if finding.what is Fault.REMOVED or (finding.what is Fault.INDEX and _has_removed(dataset)):
        return f"tubecell remove-clips {shlex.quote(str(dataset))} --yes"
    if finding.what is Fault.DECODING:
        tars = shlex.quote(f"NAME={files.origin(dataset) or dataset}/{finding.shard}")
        return (
            f"{why}, or takes too long, or the build did not see what is wrong; training replaces what it cannot decode, and "
            f"indexing the shards makes a dataset without such clips: build_dataset.py --index {tars} --out ANOTHER"
        )
    if finding.what is Fault.COLUMNS:
        return f"{why}, or the manifest was edited; restore it from a copy, or build the dataset again in another folder"
    if not finding.shard:
        finished = dataset / ".build" / "finished.json"
        if finding.what is Fault.DATASET and finished.exists() and "manifest.parquet that can" not in finding.expected:
            return f"rm {shlex.quote(str(finished))}; then {again}, which writes the tables anew"
        return "restore manifest.parquet and dataset.json from a copy; or build the dataset again in another folder"
    if (url := files.origin(dataset)) and is_ours(finding.shard):
        return f"remove {url}/{finding.shard}; then {again}, which makes this shard anew"
    if not is_ours(finding.shard):
        return f"restore {finding.shard} from where it came: it was indexed in place and there is no other copy of its clips"
    shard = dataset / finding.shard
    done = sorted((dataset / ".build" / "done").glob(f"{shard.stem}.*"))
    if not done:
        return f"restore {finding.shard} from a copy: the state of its build (.build) is not here to make it again"
    outdated = [shard, shard.with_suffix(".idx"), *done]
    return f"rm -f {shlex.join(map(str, outdated))}; then {again}, which makes this shard anew"


def _has_removed(dataset: Path) -> bool:
    return not pc.all(pc.greater(pq.read_table(dataset / "manifest.parquet", columns=["size"])["size"], 0)).as_py()


@exit_status(RuntimeError)
def main(words: Sequence[str]) -> int:
    """Returns the exit status: 0 all is well, 1 something is wrong, 2 for an error, 130 if stopped by ^C."""
    args = arguments().parse_args(words)
    try:
        status = report(args)
        check_printed()
        return status
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def report(args: argparse.Namespace) -> int:
    """Print findings as they come, then how to repair them."""
    place = args.dataset
    dataset = files.fetch_manifest(place) if is_url(place) else Path(place)
    limits = {"sample": (1, 2**62), "workers": (1, 4096), "time-limit": (1, 10**7), "memory-limit": (0.5, 10**4)}
    for option, (low, high) in limits.items():
        value = getattr(args, option.replace("-", "_"))
        if value is not None and not low <= value <= high:
            raise ValueError(f"--{option} {value:g}: allowed are {low:g} to {high:g}")
    keys = failed_keys(Path(args.failures)) if args.failures else None
    how = {"decode": args.decode, "time_limit": args.time_limit, "memory_limit": args.memory_limit}
    findings = recheck(dataset, args.sample, args.workers, keys=keys, **how)
    by_shard: Counter[str] = Counter()
    repairs: dict[str, None] = {}
    entries = []
    for finding in findings:
        by_shard[finding.shard] += 1
        repairs[repair(dataset, finding)] = None
        if args.json:
            entries.append({**asdict(finding), "repair": repair(dataset, finding)})
        elif by_shard[finding.shard] <= SHOWN_PER_SHARD:
            tqdm.write(one_line(finding))
    if args.json:
        print(json.dumps({"dataset": str(place), "findings": entries}, indent=1))
        return 1 if entries else 0
    for shard, count in by_shard.items():
        if count > SHOWN_PER_SHARD:
            print(f"{shard or place}: and {count - SHOWN_PER_SHARD} more (--json lists all)")
    if not by_shard:
        what = f"a sample of {args.sample}" if args.sample else "those that failed" if args.failures else "all clips"
        print(f"{place}: nothing is wrong ({what}; {'decoded whole' if args.decode else 'hashes and headers only'})")
        return 0
    places = [shard for shard in by_shard if shard]
    where = f" in {len(places)} of the shards" if len(places) > 1 else f" in {places[0]}" if places else ""
    print(f"{place}: {by_shard.total()} finding{'s' * (by_shard.total() > 1)}{where}")
    for number, text in enumerate(repairs):
        print(f"{'repair' if number == 0 else '      '}    {text}")
    return 1


def one_line(finding: Finding) -> str:
    """A finding for people."""
    place = " ".join(part for part in (finding.shard, finding.key) if part) or "dataset"
    text = f"{place}: {finding.what}: expected {finding.expected}, found {finding.found}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def failed_keys(file: Path) -> frozenset[str]:
    """RUN/failures.jsonl -> keys of the clips that a training run could not decode; raises ValueError if it is none."""
    keys = set()
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                keys.add(str(json.loads(line)["key"]))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"--failures {file}: line {number} has no key of a clip ({error!r})") from None
    return frozenset(keys)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="folder with manifest.parquet, or a URL")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sample", type=int, metavar="N", help="look at N clips, always the same ones (default: all)")
    which.add_argument("--failures", metavar="FILE", help="failures.jsonl of a training run: look at those clips")
    add("--no-decode", dest="decode", action="store_false", help="hashes and headers only, at the speed of the disk")
    add("--json", action="store_true", help="print all findings as JSON")
    add("--workers", type=int, default=usable_cores(), metavar="N", help="processes (%(default)s)")
    add("--time-limit", type=float, default=900, metavar="SECONDS", help="for one clip (%(default)s)")
    add("--memory-limit", type=float, default=4, metavar="GIB", help="for one clip (%(default)s)")
    return parser
