"""The encoder of an earlier run, to be run and not trained: its sizes and its weights, from a run's folder or a weights'
file."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import MODELS, ModelConfig
from pipeline.settings import read
from train.checkpoint.state import latest, read_weights
from train.config import read_config

PREFIX = "encoder."
Weights = Callable[[], Mapping[str, Tensor]]


def read_teacher(place: str, student: ModelConfig) -> tuple[ModelConfig, Weights]:
    """A run's folder, or a safetensors file under official names -> the encoder's sizes, for the student's views, and what
    reads its parameters, whole, on the CPU, without the prefix `encoder.`. Raises ValueError for what is no encoder of the same
    tokens."""
    path = Path(place)
    if path.is_dir():
        sizes, weights = _of_run(path)
    else:
        sizes, weights = _of_file(path)
    for name in ("patch_size", "tubelet_size"):
        theirs, ours = getattr(sizes, name), getattr(student, name)
        if theirs != ours:
            raise ValueError(f"--teacher {place}: its {name} is {theirs}, the student's {ours}; they must have the same tokens")
    return replace(sizes, num_frames=student.num_frames, input_size=student.input_size), weights


def _of_run(run: Path) -> tuple[ModelConfig, Weights]:
    file, checkpoint = run / "model.safetensors", latest(run / "checkpoints")
    if not (run / "config.json").exists() or (checkpoint is None and not file.exists()):
        raise ValueError(f"--teacher {run} is no run with a checkpoint; give the --out of one, or a model.safetensors")
    flat = read_config(run / "config.json")
    values = {name.removeprefix("model."): value for name, value in flat.items() if name.startswith("model.")}
    sizes = read(ModelConfig, values, f"{run / 'config.json'}, model,")
    if file.exists():
        return sizes, lambda: _encoder(_tensors(file), file)
    return sizes, lambda: _encoder(read_weights(checkpoint), checkpoint)  # type: ignore[arg-type]


def _of_file(file: Path) -> tuple[ModelConfig, Weights]:
    shapes = {name: tensor.shape for name, tensor in _encoder(_tensors(file), file).items()}
    kernel = shapes.get("patch_embed.proj.weight")
    depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    for sizes in MODELS.values():
        patch = (sizes.encoder_dim, 3, sizes.tubelet_size, sizes.patch_size, sizes.patch_size)
        if kernel == patch and depth == sizes.encoder_depth:
            return sizes, lambda: _encoder(_tensors(file), file)
    raise ValueError(
        f"--teacher {file}: {depth} blocks behind a patch embedding of {tuple(kernel or ())} are none of {', '.join(MODELS)}; "
        "give the folder of its run, which knows its sizes"
    )


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"--teacher {file} cannot be read as safetensors: {error}") from error


def _encoder(weights: Mapping[str, Tensor], place: Path) -> dict[str, Tensor]:
    found = {name.removeprefix(PREFIX): tensor for name, tensor in weights.items() if name.startswith(PREFIX)}
    if not found:
        raise ValueError(f"--teacher {place} has no {PREFIX}*; it must be of a pre-training run")
    return found
