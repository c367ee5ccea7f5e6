"""The configuration of a run: typed, complete, and written into its folder. A stage adds its own fields and groups.

A field says itself whether it may change from one start of a run to the next (`setting`); a change of any other would make it
another run.
"""

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from model.config import MODELS, AttentionKernel, ModelConfig, TokenMethod
from pipeline.sampling import PlainViews, SamplingRecipe
from pipeline.settings import completed, fields_of, flag, flatten, renamed, setting, with_values
from pipeline.storage.clip_cache import parse_size
from pipeline.storage.dataset import Dataset
from pipeline.storage.manifest import Manifest
from pipeline.storage.remote import as_given, is_url

LABEL_MAP = "label_map.json"  # of a run, where clips are labelled: the classes of training
CHECKPOINTING = "--compute.activation-checkpointing"
VIEWS_PER_FORWARD = 128  # without a plan (`train/compute/plan.py`), on a CPU, and where their number changes what is learned


@dataclass(frozen=True, slots=True)
class Policy:
    """A parsed `--compute.activation-checkpointing`."""

    kind: str  # none, full, every, budget, or auto, which without a plan is none
    number: float = 0.0  # K or GiB

    @staticmethod
    def parse(text: str) -> "Policy":
        """Raises ValueError for anything but the five forms."""
        if text in ("auto", "none", "full"):
            return Policy(text)
        kind, _, value = text.partition(":")
        with suppress(ValueError):
            number = float(int(value) if kind == "every" else value)
            if kind in ("every", "budget") and math.isfinite(number) and number > 0:
                return Policy(kind, number)
        raise ValueError(
            f'{CHECKPOINTING} {text}: must be "auto", "none", "full", "every:K" (a whole K from 1) or "budget:GIB" (over 0)'
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    """The optimizer and its schedule."""

    base_lr: float = 1.5e-4
    """Peak learning rate for 256 views; scaled by views_per_step / 256."""
    base_min_lr: float = 2.5e-6
    """Learning rate at the end of the cosine, for 256 views."""
    warmup_share: float = 0.1
    """Share of the steps in which the learning rate rises from 0 (the paper: 120 of 1200 epochs)."""
    weight_decay: float = 0.05
    """Of matrices; vectors, biases and the mask token have none."""
    optimizer: Literal["adamw", "sgd"] = setting("adamw", was="adamw", may_change=False)
    """"adamw", or "sgd" with momentum, whose weight decay is a part of the gradient."""
    momentum: float = 0.9
    """SGD's."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    eps: float = 1e-8
    """AdamW's."""
    clip_grad: float | None = None
    """Largest global gradient norm; None leaves gradients as they are."""
    spike_factor: float | None = None
    """Also skip a step whose gradient norm is over so many times its running mean (of 100 steps, which must be over first);
    3 to 10 are sensible; None skips only what is not finite."""
    max_skipped: int = 20
    """Skipped steps in a row after which the run stops. (In fp16, those that only lower the loss scale do not count.)"""

    def __post_init__(self) -> None:
        for name, allowed, words in (
            ("base_lr", lambda x: x > 0, "over 0"),
            ("base_min_lr", lambda x: x >= 0, "at least 0"),
            ("warmup_share", lambda x: 0 <= x < 1, "at least 0 and less than 1"),
            ("weight_decay", lambda x: x >= 0, "at least 0"),
            ("momentum", lambda x: 0 <= x < 1, "at least 0 and less than 1"),
            ("eps", lambda x: x > 0, "over 0"),
            ("clip_grad", lambda x: x > 0, "over 0; None leaves gradients as they are"),
            ("spike_factor", lambda x: x > 1, "over 1: a step at the mean is no spike; None skips no spikes"),
            ("max_skipped", lambda x: x >= 1, "at least 1"),
        ):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and allowed(value)):
                raise ValueError(f"{flag(f'optim.{name}')} {value} must be {words}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"--optim.betas {' '.join(map(str, self.betas))} must be at least 0 and less than 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """How a step is computed; none of this changes what is learned, beyond rounding."""

    precision: Literal["bf16", "fp32", "tf32", "fp16", "paper"] = "bf16"
    """Of the forward and backward pass; master weights, gradient reduction, targets and loss are float32 always. "fp16" is
    the official code's, with loss scaling; "paper": encoder in fp16, decoder in fp32."""
    views_per_forward: int | None = setting(None, was=VIEWS_PER_FORWARD)
    """Most views of one forward pass on one rank; a step is accumulated over as many passes as it takes. By default as many as
    the GPU's memory holds, and 128 on a CPU. Where the number of loss tokens varies (T' no multiple of 4, or random masks), the
    loss is the mean of the passes' means (official code: of the ranks' means), and 128 are the default everywhere."""
    activation_checkpointing: str = setting("auto", was="none")
    """Blocks that run again in the backward pass instead of keeping their activations: "none", "full", "every:K", or
    "budget:GIB", as few FLOPs as keep `views_per_forward` views within so many GiB; "auto" is none, or as few as the GPU's
    memory demands. --dry-run tells what each costs."""
    shard: int | None = None
    """Ranks that share one copy of parameters and optimizer state, the ranks of a node by default; 1: each has its own."""
    reshard_after_forward: bool = False
    """Drop a block's gathered weights after its forward pass, and gather them again for the backward pass: e bytes a
    parameter less, half as much communication again."""
    defer_gradients: bool = False
    """With accumulation: reduce gradients after the step's last pass only; takes 4 bytes a parameter on every rank."""
    memory_gib: float | None = None
    """Of a card: what a run and --dry-run plan for; by default this machine's GPU, or, without one, --dry-run has cards of 40,
    80 and 141 GB."""
    compile: bool | None = None
    """Compile the blocks; by default on a GPU only: on a CPU it needs a C++ compiler, which a bare machine lacks."""
    tokens: TokenMethod = "auto"
    """What makes patches and targets of uint8 views: "triton", one kernel; "reference", plain operations; "compiled", those
    through torch.compile. "auto" is the kernel on a GPU, where triton is installed, and the reference on a CPU."""
    attention: AttentionKernel = "auto"
    """Kernels of attention on a GPU in bf16 and fp16: "flash" torch's own FlashAttention-2, "cudnn" cuDNN's, or "flash3" the
    package FlashAttention-3's, for Hopper. "auto" is "cudnn" on Hopper, if its gradients are right there, else "flash"; on a
    CPU in bf16 plain products where there are few tokens."""
    align_mlp: bool | None = None
    """Compute MLPs of an odd hidden width (ViT-g's decoder: 2234) padded with zeros to a multiple of 64; what is learned
    and saved stays the same. By default on a GPU only."""
    deterministic: bool = False
    """On a GPU: the same losses to the last bit whenever the run is repeated or resumed on such a machine, at some speed.
    Without it the batches are the same, and attention's backward pass adds in any order. On a CPU it is so always."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" takes a GPU if there is one."""

    def __post_init__(self) -> None:
        Policy.parse(self.activation_checkpointing)
        if self.deterministic and self.attention in ("cudnn", "flash3"):
            raise ValueError(f'--compute.deterministic: attention "{self.attention}" is not; take "flash", or leave "auto"')
        if self.shard is not None and self.shard < 1:
            raise ValueError(f"--compute.shard {self.shard} must be at least 1")
        if self.memory_gib is not None and self.memory_gib <= 0:
            raise ValueError(f"--compute.memory-gib {self.memory_gib} must be over 0")

    @property
    def most_views(self) -> int:
        """Of a forward pass, without a plan."""
        return VIEWS_PER_FORWARD if self.views_per_forward is None else self.views_per_forward


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderConfig:
    """How batches come to the ranks; none of this changes which."""

    workers: int | None = None
    """Processes of a rank that decode; by default found in the first seconds, between one and four for each of its cores."""
    prefetch: int | None = None
    """Batches decoded ahead; by default what the trainer takes in 5 s, in a quarter of the memory, shared by a node's ranks."""
    decoder: Literal["auto", "libav", "dali"] = "auto"
    """Of the clips: libav on the CPU's cores, or DALI, NVDEC on a GPU; the pixels differ by half a level in the mean. "auto"
    takes libav, unless the cores give less than the step takes and DALI was measured to give more on such a GPU; then it takes
    DALI for the clips that it can decode."""
    cache: Path | None = None
    """A folder on a local disk that keeps clips of a dataset behind a URL, for all runs and ranks of a node; by default the
    environment's TUBECELL_CACHE, or none."""
    cache_size: str | None = None
    """Bytes that the cache may hold, such as 500G: the clips used longest ago go first; by default TUBECELL_CACHE_SIZE."""

    def __post_init__(self) -> None:
        for name in ("workers", "prefetch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{flag(f'loader.{name}')} {value} must be at least 1; without it, the loader finds one")
        if self.cache is not None and is_url(self.cache):
            raise ValueError(f"--loader.cache {as_given(self.cache)} must be a folder on a local disk")
        if self.cache_size is not None:
            parse_size(self.cache_size, "--loader.cache-size")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """A run of any stage: what the loop asks for, whatever it trains on."""

    out: Path | None = setting(None, may_change=True)
    """The run's folder, outside of datasets and of their sources. If it holds a checkpoint, the run goes on from there."""
    init: str | None = setting(None, was=None, place=True)
    """What a new run begins with: a file or folder of weights of any layout, ours or others', or an earlier run's folder. What
    fits is taken, and said."""
    official_script: bool = False
    """Take the values of the recipe's official launch script where they differ from the paper's."""
    config: Path | None = setting(None, may_change=True)
    """RUN.toml: recipe and flags as a file (see train/command_line.py). Flags win over it, and so does a run that goes on."""
    steps: int | None = setting(None, may_change=True)
    """Optimizer steps; by default epochs times the steps of an epoch. Who gives one of the two overrides a recipe's other."""
    epochs: int | None = setting(300, may_change=True)
    """Instead of steps: passes over the clips. One takes every clip once, with R views: 300 are the paper's 1200 epochs."""
    seed: int = 0
    """Of the initial weights, the order, the crops and the masks."""
    log_every: int = setting(10, may_change=True)
    """Steps between two lines of the log."""
    save_every: int = setting(500, may_change=True)
    """Steps between two checkpoints; the last step is always saved."""
    save_in_background: bool = setting(True, may_change=True)
    """Write checkpoints beside the training, from a copy of the state in memory: 12 bytes a parameter, over all ranks."""
    keep_last: int = setting(2, may_change=True)
    """Checkpoints that stay, the newest ones."""
    keep_every: int | None = setting(None, may_change=True)
    """Checkpoints of the steps that this divides stay as well; a multiple of save_every."""
    mirror: str | None = setting(None, may_change=True)
    """A place in object storage, s3://bucket/run, to upload checkpoints to. A run whose folder is lost goes on from there."""
    wandb: str | None = setting(None, may_change=True)
    """Project of Weights & Biases to log to as well; needs `pip install wandb`."""
    evaluate_every: int | None = setting(None, may_change=True)
    """Steps between two evaluations on clips that are held out, see --evaluate-split; figures go to RUN/evaluations.jsonl."""
    evaluate_split: str = setting("val", may_change=True)
    """Split of the dataset to evaluate on."""
    ema: float | None = None
    """Keep a running mean of the weights, with this decay a step, as 0.9999; it is saved, evaluated and exported besides."""
    profile: str | None = setting(None, may_change=True)
    """FIRST:LAST, as 10:15: write a trace of these steps, and on a GPU of its memory, into RUN/profile."""
    profile_loader: bool = setting(False, may_change=True)
    """Write a report of where the loader's time goes into RUN/loader_profile, now and then and at the end."""
    dry_run: bool = setting(False, may_change=True)
    """Print what the run would be, and exit."""
    expected_clips: int = setting(1_348_000, may_change=True)
    """Clips to reckon with in a dry run without --data (UnlabeledHybrid: the paper's Table 8)."""
    mfu: float = setting(0.45, may_change=True)
    """Share of a card's data-sheet rate that a dry run reckons with, without what checkpointing computes again."""

    views: PlainViews = field(default_factory=PlainViews)
    optim: OptimConfig = setting(default_factory=OptimConfig, may_change=True)
    compute: ComputeConfig = setting(default_factory=ComputeConfig, may_change=True)

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "log_every", "save_every", "keep_last", "evaluate_every", "expected_clips"):
            at_least_1(self, name)
        if not 0 < self.mfu <= 1:
            raise ValueError(f"--mfu {self.mfu} must be over 0 and at most 1, such as 0.45")
        if self.steps is None and self.epochs is None:
            raise ValueError("--steps or --epochs is needed: how long the run is")
        if self.init is not None and is_url(self.init):
            raise ValueError(f"--init {as_given(self.init)} must be a file or a folder on a disk; download it first")
        if self.init is not None and self.out is not None and Path(self.init).resolve() == Path(self.out).resolve():
            raise ValueError(f"--init {self.init} is --out itself; a run goes on without --init, a new one needs another --out")
        if self.out is not None and is_url(self.out):
            raise ValueError(
                f"--out {as_given(self.out)} must be a folder; --mirror puts copies of the checkpoints behind a URL"
            )
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.save_every):
            raise ValueError(f"--keep-every {self.keep_every} must be a multiple of --save-every {self.save_every}")
        if self.mirror is not None and not is_url(self.mirror):
            raise ValueError(f"--mirror {self.mirror} must be a URL such as s3://bucket/run; --out is where the run is on disk")
        if self.profile is not None:
            parse_steps(self.profile)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"--ema {self.ema} must be over 0 and less than 1, as 0.9999; None keeps no mean")
        _ = self.sampling  # refuses views that cannot be taken or masked

    @property
    def sampling(self) -> SamplingRecipe:
        """What decides the batches. Raises ValueError if such views cannot be taken."""
        raise NotImplementedError

    @property
    def freeze(self) -> int:
        """Blocks that are not trained, the first ones."""
        return 0

    @property
    def has_data(self) -> bool:
        """Whether it is said what to train on."""
        raise NotImplementedError

    @property
    def lacking(self) -> str:
        """The flags that a run needs and somebody did not give, in words; "" if all are there."""
        raise NotImplementedError

    @property
    def place(self) -> str:
        """Where what it is trained on lies."""
        raise NotImplementedError

    def dataset(self, version: int | None = None) -> Dataset:
        """What it is trained on, at its latest version or an earlier one. Raises ValueError if it cannot be read."""
        raise NotImplementedError

    @property
    def model(self) -> Any:
        """The sizes of what is trained."""
        raise NotImplementedError

    @property
    def peak_lr(self) -> float:
        return self.optim.base_lr * self.views.views_per_step / 256

    @property
    def final_lr(self) -> float:
        return self.optim.base_min_lr * self.views.views_per_step / 256

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps or (self.epochs or 0) * steps_per_epoch

    def warmup_steps(self, total_steps: int) -> int:
        return round(self.optim.warmup_share * total_steps)

    @property
    def views_matter(self) -> bool:
        """Whether the number of views of a forward pass changes what is learned, beyond rounding."""
        return False

    def accumulation(self, world_size: int, most: int | None = None) -> int:
        """Forward passes of a rank in a step: the fewest, equal ones that keep to `most` views, by default `views_per_forward`.

        Raises ValueError, with the numbers, if the ranks cannot share the step's clips.
        """
        clips = self.sampling.clips_per_step
        if clips % world_size:
            possible = ", ".join(str(w) for w in range(1, min(clips, 4096) + 1) if clips % w == 0)
            raise ValueError(
                f"--views.views-per-step {self.views.views_per_step} are {clips} clips of {self.views.views_per_clip} views, "
                f"which {world_size} ranks cannot share equally; possible numbers of ranks: {possible}"
            )
        share, most = clips // world_size, most or self.compute.most_views
        if most < self.views.views_per_clip:
            raise ValueError(
                f"--compute.views-per-forward {most} must be at least --views.views-per-clip {self.views.views_per_clip}: "
                "a clip's views stay together"
            )
        most //= self.views.views_per_clip
        return next(n for n in range(math.ceil(share / most), share + 1) if share % n == 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(LoopConfig):
    """A run of any stage of clips."""

    data: str | None = setting(None, may_change=True, place=True)
    """The dataset: a folder with a manifest.parquet, made by dataset_builders/, or its URL."""
    freeze: int = 0
    """Do not train the first N blocks, and the patch embedding with them."""

    model: ModelConfig = field(default_factory=lambda: MODELS["vit-b"])
    loader: LoaderConfig = setting(default_factory=LoaderConfig, may_change=True)

    def __post_init__(self) -> None:
        super(RunConfig, self).__post_init__()  # slots: the class that a bare super() names is another
        if self.data is not None:
            object.__setattr__(self, "data", as_given(self.data))
        if not 0 <= self.freeze <= self.model.encoder_depth:
            raise ValueError(f"--freeze {self.freeze} must be 0 to {self.model.encoder_depth}, the blocks of the encoder")

    @property
    def sampling(self) -> SamplingRecipe:
        """What decides the batches. Raises ValueError if such views cannot be taken."""
        return self.joined(masks=None)

    @property
    def has_data(self) -> bool:
        return self.data is not None

    @property
    def lacking(self) -> str:
        return "" if self.has_data and self.out is not None else "--data DATASET and --out RUN are"

    @property
    def place(self) -> str:
        assert self.data is not None
        return self.data

    def dataset(self, version: int | None = None) -> Manifest:
        return Manifest(self.place, version)

    def joined(self, **more: Any) -> SamplingRecipe:
        """The views, the model's sizes, the run's seed, and what a stage knows besides, as one recipe."""
        sizes = {name: getattr(self.model, name) for name in ("num_frames", "input_size", "tubelet_size", "patch_size")}
        return SamplingRecipe(seed=self.seed, **sizes, **asdict(self.views), **more)


def at_least_1(config: Any, name: str) -> None:
    """Raises ValueError if a field is a number below 1."""
    if (value := getattr(config, name)) is not None and value < 1:
        raise ValueError(f"{flag(name)} {value} must be at least 1")


def read_config(file: Path) -> dict[str, Any]:
    """A run's config.json, flat, without its stage and recipe, under today's names: {"optim.base_lr": ...}; it may lack fields,
    see `settings.completed`."""
    values = renamed(flatten(json.loads(file.read_text())))
    for name in ("stage", "recipe"):
        values.pop(name, None)
    if values.get("data"):
        values["data"] = as_given(values["data"])  # older code lost a slash of a URL
    return values


Config = TypeVar("Config", bound=LoopConfig)


def configuration_of(run: Path, base: Config) -> Config:
    """A run's, whole, as it was resolved; `base` is any configuration of the same stage. Raises ValueError for what only newer
    code knows."""
    file = run / "config.json"
    before, fields = completed(read_config(file), base), fields_of(base)
    if unknown := sorted(before.keys() - fields.keys()):
        raise ValueError(f"{file} has {', '.join(unknown)}, which this tubecell does not know; update it")
    found: Config = with_values(base, {name: typed(field.type, before[name]) for name, (field, _) in fields.items()})
    return found


def typed(kind: Any, value: Any) -> Any:
    """What JSON made a list or a text of."""
    if isinstance(value, list):
        return tuple(typed(None, each) for each in value)
    return Path(value) if isinstance(value, str) and Path in (kind, *get_args(kind)) else value


def read_stage(file: Path) -> str:
    """Of a run's config.json."""
    name: str = json.loads(file.read_text()).get("stage", "pretrain")  # the only one of older code
    return name


def read_recipe(file: Path) -> str | None:
    """Of a run's config.json: its name, which older code did not write."""
    name: str | None = json.loads(file.read_text()).get("recipe")
    return name


def parse_steps(text: str) -> tuple[int, int]:
    """ "10:15" -> (10, 15), both included. Raises ValueError for anything else."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile {text} must be FIRST:LAST, two steps of the run, as in 10:15")
    return int(first), int(last)
