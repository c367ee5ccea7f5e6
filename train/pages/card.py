"""RUN/card.md: what a run's exported weights are, in plain words, for whoever finds the file without the run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from model.weights import DESCENT, MODEL, Weights
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
    data, commits = start.get("dataset", {}), dict.fromkeys(str(each.get("commit")) for each in run.starts)
    facts = {
        "model": f"{_model(shapes, metadata) if encoder else ''}{sum(map(torch.Size.numel, shapes.values())):,} parameters",
        "views": views_of(config),
        "stage, recipe": f"{metadata.get('stage')}, {metadata.get('recipe', 'unknown')}",
        "training": f"{last['step']:,} steps of {config['views.views_per_step']:,} views, {last['epoch']:.1f} epochs",
        "dataset": f"`{Path(str(config.get('data') or config.get('features'))).name}`, {data.get('clips', 0):,} clips of split "
        f"{data.get('split')}; version {data.get('version')}, fingerprint {data.get('fingerprint')}",
        "seed": config["seed"],
        "tubecell": f"{metadata.get('tubecell')}, commit {', '.join(commits)}",
        "loss": "unknown" if run.loss is None else f"{run.loss:.4f}, the mean of the last twentieth of its log",
    }
    of_settings = probe_record.names_of_settings(run)
    for line in run.evaluations[-1:]:
        told = [name for name in line.keys() - NO_FIGURES if line[name] is not None and not name.endswith(of_settings)]
        figures = [f"{name.replace('_', ' ')} {line[name]:.4g}" for name in told]
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
            f"# {run.name}",
            "",
            *(f"- `{name}`: {EXPORTS[name]}" for name in files),
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            *(probe_record.in_words(probed) if (probed := probe_record.probe_record(run, shapes)) else ()),
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


def views_of(config: Mapping[str, Any]) -> str:
    """What the model is shown at once, by a run's configuration."""
    if "model.num_steps" in config:
        return f"{config['model.num_steps']} steps of features of {config['model.input_dim']} values"
    return f"{config['model.num_frames']} frames of {config['model.input_size']} x {config['model.input_size']} pixels"


def _model(shapes: Mapping[str, torch.Size], metadata: Mapping[str, str]) -> str:
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    weights = Weights("", "", tensors, json.loads(metadata[MODEL]))
    return f"{weights.name}, {weights.what}, "
