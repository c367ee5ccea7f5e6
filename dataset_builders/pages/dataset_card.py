"""DATASET/card.md: what a dataset is, for whoever finds it without its build. Every statement is counted in its tables or taken
from dataset.json; what nobody stated, it says so."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from dataset_builders.pages.counts import DatasetCounts, classes
from pipeline.report.markdown import front_matter, literal, table
from pipeline.storage.columns import iter_rows

FILE = "card.md"
LICENCE = ("licence", "license")  # fields of `extra`, where annotations have one
SIZES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B")  # as the hub has them

Licences = dict[str, Counter[str]]


def find_licences(dataset: Path) -> Licences:
    """{source: how many of its clips have which licence}, of clips whose annotations state one."""
    found: Licences = {}
    for rows in iter_rows(dataset / "manifest.parquet", ["source", "extra"]):
        stated = rows.filter(pc.match_substring(rows["extra"], "licen"))
        for source, extra in zip(stated["source"].to_pylist(), stated["extra"].to_pylist(), strict=True):
            values = json.loads(extra)
            if licence := next((values[name] for name in LICENCE if isinstance(values.get(name), str)), None):
                found.setdefault(source, Counter())[licence] += 1
    return found


def own_shards(dataset: Path) -> bool:
    """Whether the clips lie in shards of this dataset, and not in tars elsewhere."""
    columns = iter_rows(dataset / "manifest.parquet", ["shard"])
    shards = {name for rows in columns for name in pc.unique(rows["shard"]).to_pylist()}
    return bool(shards) and all(name and name.startswith("shards/") for name in shards)


def dataset_card(
    name: str,
    counts: DatasetCounts,
    described: Mapping[str, Any],
    versions: list[dict[str, Any]],
    licences: Licences,
    own: bool,
) -> str:
    """Markdown. `described` is dataset.json, or {}; `own` as `own_shards` says."""
    whole, last = counts.total, versions[-1]
    labelled = classes(counts.labels, counts.splits)
    head = front_matter(
        {
            "pretty_name": shown_name(name),
            "license": "other" if licences else "unknown",
            "task_categories": ["video-classification"] if labelled else [],
            "tags": ["video", "webdataset", "tubecell"],
            "size_categories": [SIZES[min(max(0, len(str(whole.clips)) - 3), len(SIZES) - 1)]],
        }
    )
    about = [
        ["clips", f"{whole.clips:,}, of {whole.files:,} files"],
        ["splits", ", ".join(f"{literal(split)} {number:,}" for split, number in counts.splits.items()) or "none"],
        ["length, size", f"{whole.seconds / 3600:,.2f} hours, {whole.bytes / 2**20:,.1f} MiB"],
        ["pictures", _most(counts.resolutions, lambda size: f"{size[0]} x {size[1]}")],
        ["codecs", _most(counts.codecs, literal)],
        ["frames a second", _most(counts.rates, lambda rate: f"{rate:g}")],
        *(["classes", f"{literal(of.split)}: {of.classes:,}, of {of.least:,} to {of.most:,} clips"] for of in labelled),
        ["version", f"{len(versions)}, fingerprint `{last['fingerprint']}`"],
    ]
    return "\n".join(
        [
            *head,
            f"# {literal(name)}",
            "",
            "Video clips, each with a row of what is known of it. tubecell wrote this card from the dataset's own tables.",
            "(Named README.md, the hub of Hugging Face shows it.)",
            "",
            *table(["", ""], about),
            "",
            *_sources(counts, licences),
            *_left_out(counts),
            *_how_built(described, last),
            *_people(),
            *_loading(own, bool(labelled)),
        ]
    )


def shown_name(name: str) -> str:
    """Printable, for the card's head."""
    return "".join(c for c in name if c.isprintable())


def _most(counted: Counter[Any], form: Any) -> str:
    """The three that are most often there, with their shares."""
    number = sum(counted.values())
    said = ", ".join(f"{form(value)} ({share / number:.0%})" for value, share in counted.most_common(3))
    return said + (f", and {len(counted) - 3:,} others" if len(counted) > 3 else "") or "none"


def _sources(counts: DatasetCounts, licences: Licences) -> list[str]:
    rows = []
    for name, source in counts.sources.items():
        stated = licences.get(name, Counter())
        said = [f"{literal(licence)} ({number:,} clips)" for licence, number in stated.most_common(10)]
        if len(stated) > 10:
            said.append(f"{len(stated) - 10:,} other licences")
        if (silent := source.clips - sum(stated.values())) > 0:
            said.append(f"not stated ({silent:,} clips)" if stated else "not stated")
        columns = source.files, source.clips, sum(source.rejected.values()), sum(source.dropped.values())
        rows.append([literal(name), *(f"{number:,}" for number in columns), "; ".join(said) or "not stated"])
    head = ["source", "files", "clips", "rejected", "not asked for", "licence"]
    note = "Licences are those that the sources' annotations name. Not stated: nobody told the builder; it may have one."
    return ["## Sources and licences", "", *table(head, rows), "", note, ""]


def _left_out(counts: DatasetCounts) -> list[str]:
    whole = counts.total
    reasons = [("rejected", whole.rejected, "rejects.parquet"), ("not asked for", whole.dropped, "dropped.parquet")]
    rows = [[what, literal(why), f"{number:,}", f"`{file}`"] for what, of, file in reasons for why, number in of.most_common()]
    listed = table(["", "reason", "number", "each by name"], rows) if rows else ["Nothing."]
    gone = f"{counts.removed:,} clips were removed for good after the build; their rows are left, empty."
    return ["## What was left out", "", *listed, "", *([gone, ""] if counts.removed else [])]


def _how_built(described: Mapping[str, Any], last: Mapping[str, Any]) -> list[str]:
    options = {name: value for name, value in described.get("options", {}).items() if value not in ("", None, [], {})}
    tools = described["versions"][-1].get("tools", {}) if described.get("versions") else {}
    lines = [f"- {literal(name.replace('_', ' '))}: {literal(value)}" for name, value in {**options, **tools}.items()]
    of = [
        f"- {base['clips']:,} clips of the dataset {literal(Path(base['of']).name)}, version {base['version']}"
        + (f", where {literal(base['where'])}" if base.get("where") else "")
        for base in described.get("subset", [])
    ]
    if equal := described.get("duplicates", {}).get("clips"):
        both = described["duplicates"]["in_training_and_held_out"]
        lines.append(f"- {equal:,} clips have the bytes of another, {both:,} of them in training and in validation or test")
    return ["## How it was built", "", *(of + lines or ["Not stated: there is no dataset.json."]), ""]


def _people() -> list[str]:
    return [
        "## People in the pictures",
        "",
        "Videos may show people. The builder has not looked for them: consent, and the right to keep and to share the clips,",
        "are for you to settle. `tubecell remove-clips DATASET --where CONDITION --yes` overwrites clips for good.",
        "",
    ]


def _loading(own: bool, labelled: bool) -> list[str]:
    label = '  # and sample["json"]["label"]' if labelled else ""
    lines = [
        "```python",
        "from tubecell.pipeline.loader import ClipLoader",
        "from tubecell.pipeline.sampling import SamplingRecipe",
        "",
        "recipe = SamplingRecipe(views_per_step=8, views_per_clip=4)",
        'loader = ClipLoader("DATASET", recipe)',
        "batch = next(iter(loader))  # batch.views: uint8, 8 views",
        "loader.close()",
        "```",
        "",
    ]
    if own:
        lines += [
            "The shards are plain WebDataset tars, `KEY.mp4` with `KEY.json` beside it. Splits are mixed; `json` says which.",
            "",
            "```python",
            "import glob, webdataset",
            "",
            'for sample in webdataset.WebDataset(sorted(glob.glob("DATASET/shards/*.tar")), shardshuffle=False).decode():',
            f'    sample["__key__"], sample["json"]["split"]{label}',
            "```",
            "",
            "With `datasets` of Hugging Face (not installed where this card was written, so not tried):",
            '`load_dataset("webdataset", data_files="DATASET/shards/*.tar", split="train", streaming=True)`.',
            "",
        ]
    else:
        lines += ["The clips lie in tars elsewhere, which `manifest.parquet` names with the place of each clip.", ""]
    return ["## To load it", "", *lines]
