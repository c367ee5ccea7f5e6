"""RUN/card.md: what a run's exported weights are, in plain words, for whoever finds the file without the run. Its head is what
model hubs read; all is taken from the run's own files, and what nobody stated, it says so."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from model.weights import DESCENT, MODEL, Weights
from pipeline.report.markdown import front_matter, literal
from train.accuracy.accuracy import interval
from train.checkpoint.descent import in_words, read_descent
from train.evaluation import comparison
from train.pages import probe_record
from train.pages.run_record import RunRecord

FILE = "card.md"
EXPORTS = {
    "model.safetensors": "the weights",
    "model_ema.safetensors": "their running mean",
    "best.safetensors": "those of the step that was the best on what is held out",
    "best_ema.safetensors": "the running mean of the step at which it was the best",
}
TASKS = dict.fromkeys(("finetune", "distill", "probe"), "video-classification") | {"pretrain": "feature-extraction"}
NO_FIGURES = {"step", "clips", "of", "missing", "seconds", "time"}  # of a line of evaluations.jsonl


def write_card(run: Path, metadata: Mapping[str, str]) -> None:
    """Of a run whose weights are exported; `metadata` are what their files say. Of a probe also its `probe_record`. Raises
    OSError, and ValueError for what is no run."""
    record = RunRecord.read(run)
    (run / FILE).write_text(card(record, metadata), encoding="utf-8")
    if probed := probe_record.probe_record(record, exported_shapes(record)[1]):
        (run / probe_record.FILE).write_text(json.dumps(probed, indent=1) + "\n", encoding="utf-8")


def exported_shapes(run: RunRecord) -> tuple[list[str], dict[str, torch.Size]]:
    """The exported files, and of the first one the shapes of its tensors."""
    files = [name for name in EXPORTS if (run.path / name).exists()]
    with safe_open(run.path / files[0], "pt") as opened:
        return files, {name: torch.Size(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118  (no mapping)


def card(run: RunRecord, metadata: Mapping[str, str]) -> str:
    """Markdown."""
    files, shapes = exported_shapes(run)
    encoder = any(name.endswith("patch_embed.proj.weight") for name in shapes)
    config, last, start = run.config, run.lines[-1], run.starts[-1] if run.starts else {}
    of = literal(Path(str(config.get("data") or config.get("features"))).name)
    data, commits = start.get("dataset", {}), dict.fromkeys(str(each.get("commit")) for each in run.starts)
    facts = {
        "model": f"{_model(shapes, metadata) if encoder else ''}{sum(map(torch.Size.numel, shapes.values())):,} parameters",
        "views": views_of(config),
        "stage, recipe": f"{metadata.get('stage')}, {metadata.get('recipe', 'unknown')}",
        "training": f"{last['step']:,} steps of {config['views.views_per_step']:,} views, {last['epoch']:.1f} epochs",
        "dataset": f"{of}, {data.get('clips', 0):,} clips of split {data.get('split')}; version "
        f"{data.get('version')}, fingerprint {data.get('fingerprint')}",
        "seed": config["seed"],
        "tubecell": f"{metadata.get('tubecell')}, commit {', '.join(commits)}",
        "loss": "unknown" if run.loss is None else f"{run.loss:.4f}, the mean of the last twentieth of its log",
    }
    of_settings = probe_record.names_of_settings(run)
    ranks = start.get("world_size", 1)
    facts |= {
        "batch": f"{config['views.views_per_step']:,} views a step, in {config.get('compute.precision', 'unknown')}",
        "hardware": f"{ranks} x {literal(start.get('device', 'unknown'))}, {ranks * run.hours[-1]:.3g} device hours of "
        "training",
        "on the way": f"{len(run.skipped):,} steps skipped for their gradient, {_failed(run):,} clips replaced that could "
        f"not be decoded, {len(run.restarts):,} restarts",
    }
    for line in run.evaluations[-1:]:
        told = [name for name in line.keys() - NO_FIGURES if line[name] is not None and not name.endswith(of_settings)]
        figures = [f"{name.replace('_', ' ')} {line[name]:.4g}{_between(name, line)}" for name in told]
        of = f", of {line['clips']:,} of {line['of']:,} clips" if line.get("of") else ""
        facts["held out"] = f"step {line['step']:,}: {', '.join(sorted(figures))}{of}"
    if compared := comparison(run.path):
        facts["best"] = "; ".join(compared)
    descent = read_descent(metadata.get(DESCENT))
    begun = [f"{number}. {in_words(each)}" for number, each in enumerate(descent, 1)]
    load = [f'tensors = load_file("{files[0]}")  # {len(shapes)} tensors, float32, official names']
    load.insert(0, "from safetensors.torch import load_file")
    if encoder:
        load += ["from tubecell.model import load_encoder", f'encoder = load_encoder("{files[0]}")  # clips -> features']
    return "\n".join(
        [
            *_head(run, metadata),
            f"# {literal(run.name)}",
            "",
            *(f"- `{name}`: {EXPORTS[name]}" for name in files),
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            *(probe_record.in_words(probed) if (probed := probe_record.probe_record(run, shapes)) else ()),
            "## Limits",
            "",
            *_limits(run),
            "",
            "## Descends from",
            "",
            *(begun or ["Nothing: it began with initial values."]),
            "",
            "## To load it",
            "",
            "```python",
            *load,
            "```",
            "",
        ]
    )


def _head(run: RunRecord, metadata: Mapping[str, str]) -> list[str]:
    """For hubs. No licence but "unknown": none was given, and the data's and the descent's count as well."""
    stage = str(metadata.get("stage"))
    return front_matter(
        {
            "library_name": "tubecell",
            "license": "unknown",
            "pipeline_tag": TASKS.get(stage, ""),
            "tags": ["video", "tubecell", stage],
            "metrics": ["accuracy"] if any("held_out_top1" in line for line in run.evaluations) else [],
        }
    )


def _failed(run: RunRecord) -> int:
    """Clips of failures.jsonl."""
    return len({failure.get("key") for failure in run.failures})


def _between(name: str, line: Mapping[str, Any]) -> str:
    """Of a top-1 figure the interval that holds in 95 of 100 cases (Wilson's), where it is of clips that were counted."""
    if not name.endswith("top1") or not line.get("clips") or not 0 <= line[name] <= 1:
        return ""
    low, high = interval(round(line[name] * line["clips"]), line["clips"])
    return f" ({low:.3g} to {high:.3g} in 95 of 100 cases)"


def _limits(run: RunRecord) -> list[str]:
    """What a reader must not expect, as far as the run tells."""
    looked = "Evaluated on its own dataset's held-out clips and on nothing else."
    silent = "Nothing was held out: how well it does on clips that it was not trained on was not measured."
    said = [looked if run.evaluations else silent]
    said += [f"Of its dataset: {literal(notice)}." for notice in run.notices]
    said.append("What the dataset has too much, too little or wrong, the weights have learned; the run does not look for it.")
    said.append("No licence was stated. Those of the dataset and of the weights that it descends from count as well.")
    return [f"- {each}" for each in said]


def views_of(config: Mapping[str, Any]) -> str:
    """What the model is shown at once, by a run's configuration."""
    if "model.num_steps" in config:
        return f"{config['model.num_steps']} steps of features of {config['model.input_dim']} values"
    return f"{config['model.num_frames']} frames of {config['model.input_size']} x {config['model.input_size']} pixels"


def _model(shapes: Mapping[str, torch.Size], metadata: Mapping[str, str]) -> str:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    weights = Weights("", "", tensors, json.loads(metadata[MODEL]))
    return f"{weights.name}, {weights.what}, "
