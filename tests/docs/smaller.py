"""The one table of what makes a command small enough for two cores, and its places those of a sandbox.

A rule is a pattern and what stands for it. What is not in this table runs as it stands.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

MODEL = "--model.input-size 64 --model.num-frames 8 --model.patch-size 16"
MODEL += " --model.encoder-dim 64 --model.encoder-depth 2 --model.encoder-heads 1 --model.mlp-ratio 4"
MODEL += " --model.decoder-dim 64 --model.decoder-depth 1 --model.decoder-heads 1"
FEW = "--views.views-per-step 8 --loader.workers 1 --log-every 1 --no-save-in-background"
# program -> what is appended: a flag that is given twice counts as it is given last
TRAINERS = dict.fromkeys(("pretrain", "finetune", "distill", "probe"), f"{MODEL} {FEW}")
TRAINERS |= {
    "retrieve": f"{MODEL} {FEW} --words 12",
    "detect": f"{MODEL} --loader.workers 1 --log-every 1 --no-save-in-background --views.views-per-step 8"
    " --short-sides 64 72 --evaluate-sides 64 96",
    "localize": "--log-every 1 --no-save-in-background --model.input-dim 64 --model.dim 16 --model.head-dim 16"
    " --views.views-per-step 2",
}
LOOKS = ("--dry-run", "--help", "--help-all")
SHORT = 5  # steps
QUICKSTART = "import quickstart as q; q.CLIPS, q.HELD_OUT, q.PRETRAINING, q.FINETUNING = 32, 8, 2, 2; exit(q.main())"


class Rule(NamedTuple):
    pattern: str
    made: str | Callable[[re.Match[str]], str]


def training(found: re.Match[str]) -> str:
    """A small model and few steps: as many as the number that is asked for has digits, so that more stay more."""
    program, given = found["program"], found["rest"]
    if "--dry-run" in given.split() and "--data" in given.split():  # a step takes more clips than a sandbox has
        return f"{found[0].rstrip()} --views.views-per-step 8 "
    if any(word in given.split() for word in LOOKS) or (
        program in ("localize", "retrieve") and given.split()[:1] == ["evaluate"]
    ):
        return found[0]
    wanted = re.search(r" --steps (\d+)", given)
    given = re.sub(r" --(steps|epochs) \d+", "", given)
    given = re.sub(r" --((?:evaluate|save|reconstruct)-every) \d{2,}", r" --\1 2", given)
    given = re.sub(r" --compute\.views-per-forward \d+", " --compute.views-per-forward 4", given)
    given = re.sub(r" --freeze \d{2,}", " --freeze 2", given)
    given = re.sub(r" --profile \d+:\d+", " --profile 1:2", given)
    steps = 2 if not wanted else int(wanted[1]) if int(wanted[1]) <= SHORT else len(wanted[1])
    return f"{found['call']}{given.rstrip()} {TRAINERS[program]} --steps {steps} "


def rehearsal(found: re.Match[str]) -> str:
    """Of two processes and a small model."""
    given = re.sub(r" --(nodes|gpus|card|recipe|clips) \S+", "", found["rest"]).rstrip()
    return f"tubecell rehearsal{given} --recipe tiny --nodes 1 --gpus 2 --shards 2 --reshard False --clips 20000 "


RULES = (
    Rule(rf"(?P<call>(?:tubecell |train/)(?P<program>{'|'.join(TRAINERS)})(?:\.py)?)(?P<rest>(?: [^|;&<>\n]*)?)", training),
    Rule(r"--nproc-per-node[ =]\d+", "--nproc-per-node 2"),
    Rule(r"torchrun(?= --n)(?!.*--(?:standalone|nnodes))", "torchrun --standalone"),
    # two agents of one rank each would have to run at once
    Rule(r"--nnodes[ =]\S+ (.*?)--rdzv-backend c10d --rdzv-endpoint \S+ --rdzv-id \S+", r"--standalone \1"),
    Rule(r"git clone \S+ tubecell", 'git clone --quiet "$CHECKOUT" tubecell'),
    Rule(r"^make install$", 'ln -s "$CHECKOUT/.venv" .venv'),
    Rule(r"(examples/hf_trainer\.py[^|;&<>#\n]*)", r"\1 --views 8 --size 32 --dim 48 --epochs 1 "),
    Rule(r"(examples/ddp_labels\.py[^|;&<>#\n]*)", r"\1 --views 8 --size 64 --epochs 1 "),
    Rule(r"(examples/vjepa_loop\.py[^|;&<>#\n]*)", r"\1 --views 8 --size 64 --dim 64 --steps 2 --save-every 2 "),
    Rule(r"--views 5x3\b", "--views 2x1"),
    Rule(r"--clips (\d{3,})\b", "--clips 12"),
    Rule(r"tubecell rehearsal(?P<rest>[^|;&<>\n]*)", rehearsal),
    Rule(r"tubecell throughput(?P<rest>[^|;&<>\n]*)", r"tubecell throughput\g<rest> --seconds 0.1 --rounds 1"),
    Rule(r"\{000000\.\.\d+\}", "{000000..000000}"),  # tars of a dataset that has one
    Rule(r"^source \.venv/bin/activate$", 'source .venv/bin/activate; PATH="$COMMANDS:$PATH"'),
    Rule(r"^make quickstart$", f"python -c '{QUICKSTART}'"),
    Rule(r"^make quickstart VIDEOS=\S+$", "make --dry-run quickstart VIDEOS=VIDEOS"),
    Rule(r"^make (test|test-all|docs-test|learn)$", r"make --dry-run \1"),  # each longer than all pages
)
IN_PYTHON = (
    Rule(r'device="cuda"', 'device="cpu"'),
    Rule(r"^for (\w+) in loader:", r'for \1 in __import__("itertools").islice(loader, 2):'),
)


def smaller(text: str, rules: tuple[Rule, ...] = RULES) -> str:
    """As it is run."""
    for pattern, made in rules:
        text = re.sub(pattern, made, text, flags=re.MULTILINE)
    return text.rstrip()
