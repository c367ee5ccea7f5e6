"""DATASET/report.html and card.md: what a dataset holds, where it came from and what was left out, to look at and to publish.

tubecell report-dataset DATASET
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import argparse
import json
from collections.abc import Sequence

from tqdm import tqdm

from dataset_builders.pages import dataset_card, sections
from dataset_builders.pages.contact_sheet import take_pictures
from dataset_builders.pages.counts import SourceCounts, count_dataset
from pipeline.console import exit_status
from pipeline.report.page import render
from pipeline.storage.files import write_durably
from pipeline.storage.manifest import read_versions
from pipeline.storage.remote import on_disk

TOOK = "took.json"  # in .build: how long the last build was at it


def write_report(dataset: Path) -> Path:
    """Write DATASET/report.html and card.md anew and return the first's path. 1.35 million clips: 1 s of a core, another for
    matplotlib's import, and 2 s of another process that imports torch for the contact sheet. Raises ValueError without a
    finished manifest of a known format."""
    if not (dataset / "manifest.parquet").is_file():
        raise ValueError(f"{dataset} has no manifest.parquet: it is no dataset, or its build is not finished (run it again)")
    versions = read_versions(dataset / "manifest.parquet")
    file = dataset / "dataset.json"
    described = json.loads(file.read_bytes()) if file.exists() else {}
    counts = count_dataset(dataset)
    listed = {name: SourceCounts() for name in described.get("sources", {})}  # in its order, and those that gave nothing
    counts.sources = listed | counts.sources
    pictures = take_pictures(dataset, versions[-1]["fingerprint"]) if versions[-1]["rows"] else []
    file = dataset / ".build" / TOOK
    took = tqdm.format_interval(json.loads(file.read_bytes())["seconds"]) if file.exists() else ""
    name, licences = dataset.resolve().name, dataset_card.find_licences(dataset)
    card = dataset_card.dataset_card(name, counts, described, versions, licences, dataset_card.own_shards(dataset))
    write_durably(dataset / dataset_card.FILE, card.encode())
    target, template = dataset / "report.html", Path(__file__).with_name("report.html")
    values = sections.values(counts, described, versions, pictures, took)
    write_durably(target, render(template, "dataset", name, "Dataset report", **values).encode())
    return target


@exit_status()
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=on_disk, metavar="DATASET", help="folder with manifest.parquet")
    print(write_report(parser.parse_args(arguments).dataset))


if __name__ == "__main__":
    sys.exit(main())
