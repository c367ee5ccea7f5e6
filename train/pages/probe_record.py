"""RUN/probe.json: a probe's result with everything that decided it; and what pages show of its settings.

{"chosen": {"lr": 0.001, "weight_decay": 0.1, "of": 20, "by": "top-1", "split": "val", "step": 13100, "top1": 0.631},
 "settings": [{"lr": 0.005, "weight_decay": 0.01, "top1": 0.42}, ...],
 "evaluated": {"clips": 1980, "of": 2000, "missing": [...], "views": ...},
 "probe": {...},  "features": {...},  "views": {...},  "optimizer": {...},  "schedule": {...},  "dataset": {...},
 "versions": {...}}
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from train.checkpoint.probed import BEST_LR, BEST_WEIGHT_DECAY, Head, heads_of
from train.pages.run_record import RunRecord

FILE = "probe.json"
TOP1 = "held_out_top1"
OF_SGD, OF_ADAMW = ("momentum",), ("betas", "eps")
VERSIONS = ("tubecell", "commit", "packages", "python", "device", "world_size", "decoder", "attention")  # of the last start


def heads_in(run: RunRecord) -> list[Head]:
    """In the order of its model's; none of a run that is no probe's."""
    if "lrs" not in (config := run.config):
        return []
    return heads_of(config["lrs"], config["weight_decays"], config["optim.base_lr"], config["optim.weight_decay"])


def names_of_settings(run: RunRecord) -> tuple[str, ...]:
    """What the names of the figures of single heads end in; those of a single head have names as others' have."""
    heads = heads_in(run)
    return tuple(f"_{head}" for head in heads) if len(heads) > 1 else ()


def last_of(run: RunRecord) -> dict[str, Any]:
    """The last evaluation's line; empty without one."""
    return next((line for line in reversed(run.evaluations) if TOP1 in line), {})


def top1_of(run: RunRecord) -> np.ndarray:
    """Of the last evaluation, (learning rates, weight decays), in the order in which they first come; NaN without one."""
    heads = heads_in(run)
    last = last_of(run)
    found = [last.get(TOP1 if len(heads) == 1 else f"{TOP1}_{head}") for head in heads]
    return np.array([np.nan if top1 is None else top1 for top1 in found]).reshape(len({head.lr for head in heads}), -1)


def probe_record(run: RunRecord, names: Collection[str]) -> dict[str, Any] | None:
    """Plain values; None of a run that is no probe's. `names` are those of the exported tensors."""
    if not (heads := heads_in(run)):
        return None
    config, last = run.config, last_of(run)
    start, best = run.starts[-1] if run.starts else {}, heads[0]
    if last and len(heads) > 1:
        best = Head(last[BEST_LR], last[BEST_WEIGHT_DECAY])
    attentive, sgd = config["probe"] == "attentive", config["optim.optimizer"] == "sgd"
    norm = "after the last norm" if "norm.weight" in names else "after the last block"
    pooled = f"the mean over a view's tokens {norm}" + (", and the norm of that" if "fc_norm.weight" in names else "")
    begun = run.descent[0] if run.descent else {}
    named = {name: config[f"optim.{name}"] for name in (OF_SGD if sgd else OF_ADAMW)}
    decayed = "everything" if attentive else "weights, not biases"
    chosen: dict[str, Any] = {"lr": best.lr, "weight_decay": best.weight_decay, "of": len(heads)}
    if last:
        chosen |= {"by": "top-1", "split": config["evaluate_split"], "step": last["step"], "top1": last[TOP1]}
    return {
        "chosen": chosen,
        "settings": [
            {"lr": head.lr, "weight_decay": head.weight_decay, "top1": None if np.isnan(top1) else float(top1)}
            for head, top1 in zip(heads, top1_of(run).flat, strict=True)
        ],
        "evaluated": {
            "clips": last.get("clips"),
            "of": last.get("of"),
            "missing": last.get("missing", []),
            "views": "one of each clip, its middle in time and space",
            "every": config["evaluate_every"],
        },
        "probe": {
            "kind": config["probe"],
            **({"depth": config["probe_depth"], "attention_heads": config["model.encoder_heads"]} if attentive else {}),
        },
        "features": {
            "what": f"all of a view's tokens, {norm}" if attentive else pooled,
            "encoder": begun,
            "precision": config["compute.precision"],
        },
        "views": {
            "frames": config["model.num_frames"],
            "taken_by": config["frames"],
            "distance": config["views.sampling"],
            "size": config["model.input_size"],
            "crop": config["crop"],
            "flip": config["flip"],
            "other_augmentation": "none",
            "normalisation": "ImageNet's mean and deviation",
            "a_step": config["views.views_per_step"],
            "a_clip": config["views.views_per_clip"],
            "seed": config["seed"],
        },
        "optimizer": {
            "name": config["optim.optimizer"],
            **named,
            "decayed": decayed,
            "clip_grad": config["optim.clip_grad"],
            "lrs": "peaks for 256 views",
            "running_mean": config["ema"],
        },
        "schedule": {
            "steps": run.lines[-1]["step"],
            "epochs": run.lines[-1]["epoch"],
            "warmup_share": config["optim.warmup_share"],
            "then": f"a cosine to {config['optim.base_min_lr'] / config['optim.base_lr']:g} of the peak",
        },
        "dataset": {"place": config["data"], **start.get("dataset", {})},
        "versions": {name: start.get(name) for name in VERSIONS},
    }


def in_words(record: dict[str, Any]) -> list[str]:
    """Markdown: what decided the result, and top-1 by setting."""
    chosen, rows = record["chosen"], record["settings"]
    lines = ["## How it was probed", "", "| | |", "|---|---|"]
    for what, facts in record.items():
        if what not in ("chosen", "settings", "dataset", "versions"):
            told = [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in facts.items() if value not in (None, [], {})]
            lines.append(f"| {what} | {'; '.join(told)} |")
    decays = list(dict.fromkeys(row["weight_decay"] for row in rows))
    by = (
        f"the best top-1 on split {chosen['split']} after step {chosen['step']:,}"
        if "by" in chosen
        else "the first: none was evaluated"
    )
    lines += ["", f"Chosen: lr {chosen['lr']:g}, weight decay {chosen['weight_decay']:g}, {by}. Top-1 of all {len(rows)}:", ""]
    lines += [
        f"| lr, for 256 views | {' | '.join(f'weight decay {decay:g}' for decay in decays)} |",
        "|---" * (len(decays) + 1) + "|",
    ]
    for lr in dict.fromkeys(row["lr"] for row in rows):
        cells = ["–" if row["top1"] is None else f"{row['top1']:.2%}" for row in rows if row["lr"] == lr]
        lines.append(f"| {lr:g} | {' | '.join(cells)} |")
    return [*lines, ""]


def _plain(value: object) -> str:
    """Of an encoder: which, and its fingerprint."""
    if isinstance(value, dict):
        return f"`{value.get('place', '?')}`, {value.get('model', '?')}, fingerprint {value.get('fingerprint', '?')}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
