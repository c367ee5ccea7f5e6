"""What is run: pre-training pays, the papers' ablations in small, real clips. A trial is what a row of a table needs.

The model is a small one (3 blocks of width 64, 8 frames of 32 px in 64 tokens), because two cores must do. A view has 16 tubes,
so the default hides 75 % of them: 90 % would leave two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from benchmarks.activation_memory import activations_of
from benchmarks.evidence import cell as read
from benchmarks.evidence.cell import Cell
from benchmarks.evidence.clips import labelled
from benchmarks.evidence.runner import Runner
from train.command_line import from_command_line
from train.compute.precision import PRECISIONS
from train.recipes.pretraining import RECIPES
from train.stages.pretraining import autoencoder_cost

STEPS = {5: 300, 20: 400, 100: 800}  # of fine-tuning, by percent of the labels
RATES = ("6e-3", "1.2e-2", "2.4e-2")  # base learning rates that a method may choose from
HOW = ("--loader.workers", "1")  # a cell has a core or two
SHORT = (*HOW, "--save-in-background", "False")  # and a short one no time to start a process that writes
USUAL_RATE = RATES[1]  # what both chose with all labels: that of cells that choose none
COMPLETE = "complete"  # a file of a run that is over
READ_AT = 20  # percent of the labels that ablations are read at
PRETRAIN_STEPS, SHORT_STEPS = 3000, 1000  # the latter for ablations


@dataclass(frozen=True)
class Data:
    """Where clips are."""

    generated: Path
    real: Sequence[Path] = ()

    @property
    def all(self) -> Path:
        """Every generated clip, with its label and split."""
        return self.generated / "all"


def pretraining(dataset: Path, variant: str, seed: int, steps: int | None = None, flags: tuple["str | Cell", ...] = ()) -> Cell:
    """An encoder; by default of PRETRAIN_STEPS."""
    words = ("pretrain", "micro", "--data", dataset, "--seed", str(seed), "--steps", str(steps or PRETRAIN_STEPS), *HOW, *flags)
    return Cell(f"pretrain/{variant}/{seed}", words, read.pretrained, COMPLETE)


def finetuning(
    name: str,
    dataset: Path,
    steps: int,
    rate: str,
    seed: int,
    init: Cell | None,
    flags: Sequence[str] = (),
    evaluate: bool = True,
) -> Cell:
    """A classifier, from scratch or on an encoder."""
    begin = () if init is None else ("--init", init)
    words = (
        "finetune",
        "micro",
        "--data",
        dataset,
        "--seed",
        str(seed),
        "--steps",
        str(steps),
        "--optim.base-lr",
        rate,
        *begin,
    )
    if not evaluate:
        return Cell(name, (*words, *SHORT, *flags), read.nothing, COMPLETE)
    return Cell(name, (*words, *SHORT, *flags, "--evaluate-every", str(steps)), read.held_out, COMPLETE)


def testing(classifier: Cell, dataset: Path, flags: tuple[str, ...] = ("--views", "1x1")) -> Cell:
    """Its accuracy on clips that nobody chose anything by."""
    words: tuple[str | Cell | Path, ...] = (
        "evaluate",
        classifier,
        "--data",
        dataset,
        "--split",
        "test",
        "--workers",
        "1",
        *flags,
    )
    return Cell(f"{classifier.name}/test", words, read.evaluated, "evaluation.json")


# -------------------------------------------------------------------------------------------------- pre-training pays


@dataclass(frozen=True)
class Accuracy:
    """A figure of a table."""

    method: str
    share: int
    """Percent of the labels."""
    top1: float
    """On the test part."""
    rate: str
    """The learning rate that validation chose."""


def classifier(data: Data, method: str, share: int, seed: int, rate: str) -> Cell:
    """With some of the labels, from scratch or on an encoder, or the encoder's linear probe."""
    dataset, name = labelled(data.generated, share, seed), f"labels/{method}/{share}/{seed}"
    if method == "scratch":
        return finetuning(f"{name}/{rate}", dataset, STEPS[share], rate, seed, None)
    encoder = pretraining(data.all, "default", seed)
    if method == "probe":
        return probing(name, dataset, encoder, share, seed)
    return finetuning(f"{name}/{rate}", dataset, STEPS[share], rate, seed, encoder)


def label_trial(data: Data, method: str, share: int, seed: int) -> Callable[[Runner], Accuracy]:
    """A method with some of the labels, at the best of three learning rates by the validation part with seed 0."""

    def trial(runner: Runner) -> Accuracy:
        rate = "best of 6"
        if method != "probe":
            rate = max(RATES, key=lambda rate: runner.figures(classifier(data, method, share, 0, rate))["val_top1"])
        tested = runner.figures(testing(classifier(data, method, share, seed, rate), data.all))
        return Accuracy(method, share, tested["test_top1"], rate)

    return trial


def probing(name: str, dataset: Path, encoder: Cell, share: int, seed: int) -> Cell:
    """Six linear classifiers of a frozen encoder's features; the best by validation is what is left."""
    steps = str(STEPS[share])
    words = ("probe", "micro", "--data", dataset, "--seed", str(seed), "--init", encoder, "--steps", steps, *SHORT)
    return Cell(name, (*words, "--evaluate-every", steps), read.held_out, COMPLETE)


def label_trials(data: Data, seeds: Sequence[int], shares: Sequence[int], methods: Sequence[str]) -> list[Callable]:
    return [label_trial(data, method, share, seed) for seed in seeds for share in shares for method in methods]


def first_trials(data: Data, seeds: Sequence[int], shares: Sequence[int], methods: Sequence[str]) -> list[Callable]:
    """What `label_trials` wait for, each for itself, so that no core does: the encoders of all seeds, and with seed 0 the rates
    that are chosen from, the long ones first."""
    encoders = [pretraining(data.all, "default", seed) for seed in seeds if {*methods} - {"scratch"}]
    names = [method for method in ("scratch", "pretrained") if method in methods]
    shares = sorted(shares, reverse=True)
    tried = [classifier(data, method, share, 0, rate) for method in names for share in shares for rate in RATES]
    return [partial(Runner.figures, cell=cell) for cell in (*encoders, *tried)]


LONG = PRETRAIN_STEPS + STEPS[100]


def one_frame(data: Data, runner: Runner) -> tuple[str, float]:
    """ "one frame", and top-1 of a classifier of the same size that sees one frame of a clip: what the set gives away without
    motion. It has all labels, and as many steps as `longer`."""
    flags = ("--model.num-frames", "1", "--model.tubelet-size", "1")
    cell = finetuning("one-frame", data.all, LONG, USUAL_RATE, 0, None, flags)
    return "one frame", runner.figures(testing(cell, data.all))["test_top1"]


def longer(data: Data, method: str, share: int, runner: Runner) -> tuple[str, float]:
    """ "longer, METHOD, SHARE", and top-1 with as many steps of fine-tuning as pre-training and fine-tuning have together."""
    encoder, name = (None, "longer") if method == "scratch" else (pretraining(data.all, "default", 0), f"longer-{method}")
    cell = finetuning(f"{name}/{share}", labelled(data.generated, share, 0), LONG, USUAL_RATE, 0, encoder)
    return f"longer, {method}, {share}", runner.figures(testing(cell, data.all))["test_top1"]


# ------------------------------------------------------------------------------------------------ the papers' ablations


@dataclass(frozen=True)
class Variant:
    """A row: what is changed of the default, and what the paper has of it (top-1 of ViT-B on Something-Something V2)."""

    table: str
    title: str
    flags: tuple[str, ...] = ()
    paper: float | None = None

    @property
    def name(self) -> str:
        return "-".join([self.table, *self.title.replace("%", "").replace(",", "").split()]) if self.flags else "short"


def masked(rule: str, ratio: float) -> tuple[str, ...]:
    return ("--mask", rule, "--views.mask-ratio", str(ratio))


def decoded(rule: str, ratio: float) -> tuple[str, ...]:
    return ("--decoder-mask", rule, "--views.decoder-mask-ratio", str(ratio))


DECODER_MASKS = "decoder-masks"
VARIANTS = (
    Variant(DECODER_MASKS, "none (encoder-only)", ("--views.decoder-mask-ratio", "0"), 70.28),
    Variant(DECODER_MASKS, "frame, 50 %", decoded("frame", 0.5), 69.76),
    Variant(DECODER_MASKS, "random, 50 %", decoded("random", 0.5), 64.87),
    Variant(DECODER_MASKS, "running cell, 50 %, loss on all", ("--loss-on", "all"), 66.74),
    Variant(DECODER_MASKS, "running cell, 25 %", decoded("running-cell", 0.25), 70.22),
    Variant(DECODER_MASKS, "running cell, 50 %", (), 70.15),
    Variant(DECODER_MASKS, "running cell, 75 %", decoded("running-cell", 0.75), 70.01),
    Variant("masks", "random, 75 %", masked("random", 0.75), 65.5),
    Variant("masks", "random, 90 %", masked("random", 0.9)),
    Variant("masks", "random, 95 %", masked("random", 0.95)),
    Variant("masks", "frame, 75 %", masked("frame", 0.75), 63.3),
    Variant("masks", "tube, 50 %", masked("tube", 0.5)),
    Variant("masks", "tube, 75 %", (), 67.3),
    Variant("masks", "tube, 90 %", masked("tube", 0.9), 69.3),
    Variant("masks", "tube, 95 %", masked("tube", 0.95)),
    Variant("decoder-depth", "1 block", ("--model.decoder-depth", "1"), 68.2),
    Variant("decoder-depth", "2 blocks", (), 68.9),
    Variant("decoder-depth", "4 blocks", ("--model.decoder-depth", "4"), 69.3),
    Variant("decoder-depth", "8 blocks", ("--model.decoder-depth", "8"), 69.0),
    Variant("targets", "normalised pixels, squared", (), 69.3),
    Variant("targets", "normalised pixels, L1", ("--loss", "l1"), 68.8),
    Variant("targets", "normalised pixels, smooth L1", ("--loss", "smooth-l1"), 68.6),
    Variant("targets", "plain pixels, squared", ("--target", "plain-pixels")),
)
REAL_STEPS = 200  # of fine-tuning on 36 real clips
STUDENT_SHARE = 20  # percent of the clips that a student sees


@dataclass(frozen=True)
class Ablated:
    """What a variant costs, and what its encoder is worth."""

    variant: Variant
    top1: float
    """On the test part, after fine-tuning with `READ_AT` percent of the labels."""
    views_per_second: float
    """Of pre-training, on one core."""
    mmac: float
    """Executed forward multiply-accumulates of a view, in millions."""
    kilobytes: float
    """Activations of a view that the backward pass needs, in fp32."""


def ablation(data: Data, variant: Variant, seed: int) -> Callable[[Runner], Ablated]:
    """Pre-training with one thing changed, fine-tuning at one rate, the test."""

    def trial(runner: Runner) -> Ablated:
        encoder = pretraining(data.all, variant.name, seed, SHORT_STEPS, variant.flags)
        rate = runner.figures(encoder)["views_per_second"]
        dataset = labelled(data.generated, READ_AT, seed)
        tuned = finetuning(
            f"ablation/{variant.name}/{seed}", dataset, STEPS[READ_AT], USUAL_RATE, seed, encoder, evaluate=False
        )
        top1 = runner.figures(testing(tuned, data.all))["test_top1"]
        return Ablated(variant, top1, rate, *costs(encoder))

    return trial


def costs(encoder: Cell) -> tuple[float, float]:
    """Of a pre-training command: `Ablated.mmac` and `kilobytes`."""
    config = from_command_line(RECIPES, [str(word) for word in encoder.words[1:]])
    precision = PRECISIONS["fp32"]
    kept = activations_of(config.model, config.tokens, precision).kept_bytes
    return autoencoder_cost(config.model, config.tokens, precision).gmac * 1e3, kept / 1e3


# ------------------------------------------------------------------------------------------- distillation and real clips


@dataclass(frozen=True)
class Compared:
    """A method of one of the smaller tables."""

    method: str
    top1: float
    clips: int


REAL_METHODS = ("scratch", "pretrained", "real too")
STUDENT = ("--model.encoder-dim", "32", "--model.encoder-depth", "2", "--model.encoder-heads", "2")


def distillation(data: Data, taught: bool, seed: int) -> Callable[[Runner], Compared]:
    """A student of a fifth of the teacher's size, with `STUDENT_SHARE` percent of the labels, or with what the teacher makes of
    the same clips. The teacher is the pre-trained encoder, fine-tuned with all labels."""

    def trial(runner: Runner) -> Compared:
        dataset, which = labelled(data.generated, STUDENT_SHARE, seed), "distilled" if taught else "from labels"
        teacher = classifier(data, "pretrained", 100, seed, USUAL_RATE)
        name = f"student/{which.replace(' ', '-')}/{seed}"
        student = finetuning(name, dataset, STEPS[100], USUAL_RATE, seed, None, STUDENT)
        if taught:
            words = ("distill", *student.words[1:], "--teacher", teacher)
            student = replace(student, words=words)
        found = runner.figures(testing(student, data.all))
        return Compared(which, found["test_top1"], int(found["clips"]))

    return trial


def real_clips(data: Data, method: str, fold: int) -> Callable[[Runner], Compared]:
    """UT-Interaction: 36 clips to learn from, 12 of other sequences to be right about. Nothing is chosen by anything: the rate
    is the generated set's, frames are of the whole clip."""

    def trial(runner: Runner) -> Compared:
        dataset, name = data.real[fold], f"real/{method}/{fold}"
        spread = ("--frames", "tsn")
        encoder = None if method == "scratch" else pretraining(data.all, "default", 0)
        if method == "real too":
            assert encoder is not None
            encoder = pretraining(dataset, f"real-{fold}", 0, SHORT_STEPS, ("--init", encoder))
        tuned = finetuning(name.replace(" ", "-"), dataset, REAL_STEPS, USUAL_RATE, 0, encoder, spread, evaluate=False)
        found = runner.figures(testing(tuned, dataset, ("--views", "2x1", "--sparse")))
        return Compared(method, found["test_top1"], int(found["clips"]))

    return trial
