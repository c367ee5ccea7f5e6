"""learning.md and ablations.md: what was found, with how it is made again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.evidence import tables
from benchmarks.evidence.clips import MOTIONS, SHARES, TEST, TRAIN, VAL
from benchmarks.evidence.grid import LONG, PRETRAIN_STEPS, RATES, READ_AT, SHORT_STEPS, STEPS, STUDENT_SHARE, USUAL_RATE
from pipeline.storage.files import write_durably

Found = Mapping[str, Sequence[Any]]  # by part
FLOORS = "a classifier of the clips' lengths and sizes alone is right about 58 %, one of the energy of motion about 68 %"
ABLATIONS = {
    "decoder-masks": "What the decoder leaves out, what the loss compares (V2, Tables 1, 2)",
    "masks": "What is hidden from the encoder (V1, Table 2b and Figure 5)",
    "decoder-depth": "Blocks of the decoder (V1, Table 2a)",
    "targets": "Targets and losses (V1, Table 2f)",
}


def write_learning(folder: Path, found: Found) -> list[Path]:
    """RESULTS/learning.md and learning.png, of the parts that there are -> the page, if there are any."""
    if not any(found.get(part) for part in ("labels", "one-frame", "longer", "distillation", "real")):
        return []
    checks: dict[str, float] = dict([*found.get("one-frame", ()), *found.get("longer", ())])
    steps = ", ".join(f"{steps} with {share} % of the labels" for share, steps in STEPS.items())
    shares = ", ".join(f"{share} %" for share in SHARES)
    clips = ", ".join(str(clips) for clips in SHARES.values())
    text = [
        "# Pre-training pays",
        f"{TRAIN:,} generated clips to learn from, {VAL} to choose by, {TEST:,} to be tested on, of {MOTIONS} motions; chance "
        f"is {tables.CHANCE:.0%}. Every row is the same small model (3 blocks of width 64, 8 frames of 32 px), fine-tuned for "
        f"as many steps ({steps}, 32 views each) at the best of {len(RATES)} learning rates ({', '.join(RATES)} per 256 views) "
        f"by the validation part, with seed 0; the linear probe is the best of six settings. Pre-training sees the {TRAIN:,} "
        f"clips without labels, for {PRETRAIN_STEPS:,} steps of 32 views. {shares} of the labels are {clips} labelled clips of "
        "a class; each seed has its own.",
    ]
    if labels := found.get("labels"):
        tables.labels_plot(folder / "learning.png", labels, checks.get("one frame"))
        rates = {(each.method, each.share): each.rate for each in labels if each.method != "probe"}
        chosen = "; ".join(f"{method} with {share} %: {rate}" for (method, share), rate in sorted(rates.items()))
        text += [
            tables.labels_table(labels),
            "Top-1 on the test part in percent, mean ± standard deviation over the seeds, whose number is in brackets. Rates "
            f"that validation chose: {chosen}.",
        ]
        text += ["![top-1 by share of the labels](learning.png)"]
    if checks:
        text += ["## What the set gives away, and what more steps give"]
    if "one frame" in checks:
        text += [
            f"A classifier of the same size that sees one frame of each clip, with all labels: {checks['one frame']:.1%} "
            f"(chance {tables.CHANCE:.0%})."
        ]
    long = []
    for method, called in (("scratch", "from scratch"), ("pretrained", "pre-trained")):
        known = {share: checks[name] for share in SHARES if (name := f"longer, {method}, {share}") in checks}
        if known:
            long.append(f"{called} " + ", ".join(f"{top1:.1%} with {share} % of the labels" for share, top1 in known.items()))
    if long:
        text += [
            f"Fine-tuned for {LONG:,} steps, as many as pre-training and fine-tuning have together (a step of pre-training is "
            f"cheaper): {'; '.join(long)}; seed 0. Where from scratch is ahead in this line, pre-training saves steps with "
            "labels, and not labels: these motions are learned without it, by who takes the steps."
        ]
    if compared := found.get("distillation"):
        text += ["## A small student, with and without its teacher", tables.compared_table(compared, "by seed")]
        text += [
            f"Two blocks of width 32, {STUDENT_SHARE} % of the clips: with their labels, or with what the model that was "
            "pre-trained, and fine-tuned on all labels, makes of them."
        ]
    if compared := found.get("real"):
        text += ["## Real clips: UT-Interaction, set 1", tables.compared_table(compared, "by fold")]
        text += [
            f'Six interactions, two of eight sequences left out in turns; for comparison, {FLOORS}. "pretrained": on the '
            'generated clips; "real too": then on the real clips of the training folds as well, without labels.'
        ]
    return [write(folder / "learning.md", text)]


def write_ablations(folder: Path, found: Found) -> list[Path]:
    """RESULTS/ablations.md and ablations.png, of the parts that there are -> the page, if there are any."""
    rows = [each for name in ABLATIONS for each in found.get(name, ())]
    if not rows:
        return []
    tables.ablation_plot(folder / "ablations.png", rows, list(ABLATIONS), list(ABLATIONS.values()))
    error = mean((each.top1 * (1 - each.top1) / TEST) ** 0.5 for each in rows)
    text = [
        "# The papers' ablations in small",
        f"Each row is {SHORT_STEPS:,} steps of pre-training with one thing changed, then fine-tuning with {READ_AT} % of the "
        f"labels at one learning rate ({USUAL_RATE}), tested on {TEST:,} clips: the standard error of a figure is "
        f"{100 * error:.1f} points by the test's clips alone, and seeds differ by more. Bold is the default. MMAC are executed "
        "forward products of a view of pre-training, activations what its backward pass needs in fp32; views/s were measured "
        "beside another cell: ratios within a table mean more than the numbers. The papers' figures are of ViT-B on "
        "Something-Something V2.",
        "![top-1 of each row](ablations.png)",
    ]
    for name, title in ABLATIONS.items():
        if part := found.get(name):
            text += [f"## {title}", tables.ablation_table(part, name)]
    text += [
        "Frames: a view has four tubelets in time, so 75 % is the most that can be hidden of them. Of 16 tubes 90 % are 14, "
        "and 95 % are 15."
    ]
    return [write(folder / "ablations.md", text)]


def write(file: Path, text: list[str]) -> Path:
    """Paragraphs, and where the commands are."""
    how = (
        "Every figure is a command's: learning.jsonl, beside this page, has each with its machine, commit and date. "
        "`tubecell learning` makes those that are missing and writes this page."
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_durably(file, ("\n\n".join(paragraph.strip() for paragraph in [*text, how]) + "\n").encode())
    return file
