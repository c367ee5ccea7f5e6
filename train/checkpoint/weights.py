"""Weights, whole and on the CPU: out of a checkpoint, and into a safetensors file."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors.torch import save
from torch import nn

from pipeline.progress import Progress
from pipeline.storage.files import write_whole

PART = 1 << 26  # bytes written at once


def read_weights(checkpoint: Path, which: Literal["model", "ema"] = "model") -> dict[str, torch.Tensor]:
    """All weights, or their running mean, whole, on the CPU, under their official names; no model is built. Empty if there is
    no mean. Raises OSError."""
    import torch.distributed.checkpoint as dcp  # it brings sympy: 5 s of CPU, for those who read files alone
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    entries = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    weights = {
        name.removeprefix(f"{which}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(f"{which}.") and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings():  # that there is no process group is meant
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        if weights:
            try:
                dcp.load({which: weights}, checkpoint_id=checkpoint, no_dist=True)
            except CheckpointException as error:  # no Exception, with a traceback in it
                why = [cause for cause, _ in error.failures.values()]
                raise OSError(f"{checkpoint} cannot be read: {why[0] if why else 'unknown reason'}") from None
    return weights


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Read only the weights, into an unsharded model on the CPU."""
    model.load_state_dict(read_weights(checkpoint))


def save_weights(file: Path, weights: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, whole or not at all. Raises OSError."""
    tensors = {name: tensor for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}
    write_whole(file, lambda opened: write_safetensors(opened, tensors, {"format": "pt"} | dict(metadata or {})))


def write_safetensors(file: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """The same bytes for the same values. (`save_file` wants a name to write to, and leaves another file when it is killed; and
    its metadata are in another order each time.)"""
    written = memoryview(save(apart(tensors), metadata))
    end = 8 + int.from_bytes(written[:8], "little")
    header = json.loads(bytes(written[8:end])) | {"__metadata__": metadata}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    whole = len(written) - end
    with Progress(total=whole, desc="writing", unit="B", unit_scale=True, delay=2) as bar:
        for begin in range(end, len(written), PART):
            bar.update(file.write(written[begin : begin + PART]))


def apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each in memory of its own, whole: a part of a storage would be written with the rest of it, or refused, as is what two
    names have."""
    whole, seen = {}, set[int]()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        whole[name] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
    return whole
