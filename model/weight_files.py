"""Files of weights -> tensors by the names they have there, and what is written beside them. What the names mean is
`model/weights.py`'s.

    model.safetensors             by anybody; Hugging Face's may be several, with an index
    checkpoint-99.pth, x.bin      what torch.save wrote: the tensors, or a dictionary that has them under model or module
    checkpoint-99/mp_rank_00_model_states.pt      DeepSpeed's, whose folder may be given, too
    config.json                   beside them: Hugging Face's sizes

Nothing in a file is executed: of a pickle, tensors, plain values and the arguments of the official scripts are read, objects of
DeepSpeed's and NumPy's bookkeeping become empty ones, and any other is refused by name.
"""

import argparse
import json
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import safe_globals
from tqdm import tqdm

DICTIONARIES = ("model", "module", "state_dict", "model_state_dict", "model_ema")  # that hold the tensors, the first one found
DEEPSPEED = "mp_rank_00_model_states.pt"
GLOBAL = re.compile(r"GLOBAL (\S+)")  # how torch names a global that it refuses
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json", DEEPSPEED)


@dataclass(frozen=True, slots=True)
class WeightFile:
    """What a file holds, by the names it has there."""

    place: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Of a safetensors file."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json beside it."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of the script that wrote it."""
    notes: tuple[str, ...] = ()
    """What was chosen."""


class _Inert:
    """In the place of an object of a known kind that is not needed, and whose class is not even imported."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _InertDict:
    """The same for a dictionary's subclass: torch fills dictionaries of its own kinds alone."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


# whose objects, in released pickles, say nothing of the weights
STAND_INS = {"deepspeed.": _Inert, "numpy.": _Inert, "pathlib.": _Inert, "omegaconf.": _Inert}
STAND_INS |= {"easydict.": _InertDict, "yacs.": _InertDict}


def read_weight_file(place: str | Path, key: str | None = None) -> WeightFile:
    """A file, or a folder that has one. `key` names the dictionary of a checkpoint that holds the tensors, such as model_ema.

    Raises ValueError, in one line, for what cannot be read, is damaged or cut off, is no weights at all, or holds objects.
    """
    path = Path(place)
    if not path.exists():
        raise ValueError(f"{place} does not exist; give a file of weights, or a folder that has one")
    if not path.is_file() and not path.is_dir():
        raise ValueError(f"{place} is a pipe or a device, no file; write it into one first")
    file = _file_in(path) if path.is_dir() else path
    config_file = file.parent / "config.json"
    config = _json(config_file) if path.is_dir() and config_file.exists() else {}
    if file.name.endswith(".index.json"):
        found = _read_parts(file)
    elif (kind := _kind(file)) == "safetensors":
        found = _read_safetensors(file)
    else:
        found = _read_pickle(file, kind == "zip", key)
    if key and not found.notes:
        raise ValueError(f"{file} has no dictionaries, so no {key!r}; leave the key")
    return WeightFile(str(place), found.tensors, found.metadata, config, found.arguments, found.notes)


def tensors_of(loaded: Any, place: str, key: str | None = None) -> WeightFile:
    """What torch.load gives -> its tensors. Raises ValueError if there are none, or others than plain ones."""
    notes, arguments = [], {}
    if isinstance(loaded, Mapping) and isinstance(given := loaded.get("args"), argparse.Namespace):
        arguments = vars(given)
    state = loaded
    inside = [name for name in DICTIONARIES if isinstance(loaded, Mapping) and isinstance(loaded.get(name), Mapping)]
    if key is not None and key not in inside and not (isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)):
        raise ValueError(f"{place} has no dictionary {key!r}; it has {', '.join(inside) or 'none'}")
    if key or inside:
        name = key or inside[0]
        state = loaded[name]
        others = f"; there {'are' if len(inside) > 2 else 'is'} {', '.join(n for n in inside if n != name)}, too"
        notes = [f"taken from its dictionary {name!r}{others if len(inside) > 1 else ''}"]
    if not isinstance(state, Mapping):
        raise ValueError(f"{place} holds a {type(state).__name__}, no dictionary of tensors; save model.state_dict()")
    counters = (torch.int64, torch.int32)
    found = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    tensors = {name: tensor for name, tensor in found.items() if tensor.dtype not in counters or tensor.dim() > 1}
    if not tensors:
        held = ", ".join(map(str, list(state)[:6])) or "nothing"
        raise ValueError(f"{place} holds no tensors, but {held}")
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{place}: {name} has a shape and no values: it was saved from a model on meta")
        if tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_floating_point():
            raise ValueError(f"{place}: {name} is {tensor.dtype}, {tensor.layout}; it must be plain floating-point numbers")
    return WeightFile(place, tensors, arguments=arguments, notes=tuple(notes))


def _file_in(folder: Path) -> Path:
    if (latest := folder / "latest").is_file():  # DeepSpeed's, with the name of a folder
        named = folder / latest.read_text(errors="replace").strip()
        if named.parent == folder and named.is_dir():
            folder = named
    if zero := sorted(folder.glob("zero_pp_rank_*_model_states.pt")):
        raise ValueError(f"{zero[0]}: DeepSpeed's ZeRO stage 3 divided the weights; join them with its zero_to_fp32.py first")
    if len(list(folder.glob("mp_rank_*_model_states.pt"))) > 1:
        raise ValueError(f"{folder}: DeepSpeed divided the weights among model-parallel ranks; join them first")
    for name in FILES:
        if (folder / name).is_file():
            return folder / name
    candidates = sorted(file.name for file in folder.iterdir() if file.suffix in (".safetensors", ".pth", ".pt", ".bin"))
    if len(candidates) == 1:
        return folder / candidates[0]
    found = f"has {', '.join(candidates[:6])}: give one of them" if candidates else f"has none of {', '.join(FILES)}"
    raise ValueError(f"{folder} {found}")


def _kind(file: Path) -> str:
    """safetensors, zip or pickle, by its first bytes. Raises ValueError for anything else."""
    try:
        with file.open("rb") as opened:
            head = opened.read(512)
            size = opened.seek(0, 2)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "safetensors"
    text = head.lstrip().lower()
    if not head:
        what = "is empty"
    elif text.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        what = "is a web page, perhaps an error that was saved in place of the weights; download it again"
    elif text.startswith(b"version https://git-lfs"):
        what = "is Git LFS's pointer to the weights; run `git lfs pull`"
    elif text.startswith(b"{"):
        what = "is JSON, no weights; give the file of tensors, or its folder"
    else:
        what = f"({size:,} bytes) is neither safetensors nor what torch.save writes"
    raise ValueError(f"{file} {what}")


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file} holds no JSON object")
    return values


def _read_parts(index: Path) -> WeightFile:
    """Hugging Face's index: which file has which tensor."""
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise ValueError(f"{index} has no weight_map of files beside it")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        part = index.parent / name
        if not part.is_file():
            raise ValueError(f"{index} names {name}, which is not there: the download is incomplete")
        tensors |= read_weight_file(part).tensors
    if missing := sorted(places.keys() - tensors.keys()):
        raise ValueError(f"{index} names {missing[0]}, which {places[missing[0]]} does not have")
    return WeightFile(str(index), tensors)


def _read_safetensors(file: Path) -> WeightFile:
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is damaged, or cut off: {_line(error)}") from None
    return WeightFile(str(file), tensors_of(tensors, str(file)).tensors, metadata)


def _read_pickle(file: Path, in_zip: bool, key: str | None) -> WeightFile:
    if in_zip:
        _check_sums(file)

    names = {"argparse.Namespace"}

    def load() -> Any:
        while True:  # a file of before zip does not list what it holds
            try:
                with safe_globals([_stand_in(name) for name in names]), warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="Detected pickle protocol")  # it fails, or does not
                    return torch.load(file, map_location="cpu", weights_only=True, mmap=in_zip or None)
            except pickle.UnpicklingError as error:
                held = GLOBAL.search(str(error))
                if held is None or held[1] in names or _stand_in(held[1]) is None:
                    raise
                names.add(held[1])

    return tensors_of(_guarded(file, load), str(file), key)


def _stand_in(name: str) -> Any:
    """What a global of this name is read as; None if it is not."""
    if name == "argparse.Namespace":
        return argparse.Namespace
    found = next((kind for prefix, kind in STAND_INS.items() if name.startswith(prefix)), None)
    return found and (found, name)


def _guarded(file: Path, read: Callable[[], Any]) -> Any:
    """What a damaged or hostile file raises may be anything; MemoryError is the machine's."""
    try:
        return read()
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        if held := GLOBAL.search(str(error)):
            raise ValueError(
                f"{file} holds {held[1]}, whose code would run; only tensors and plain values are read. "
                "If you trust it, load it yourself and save its state dict alone"
            ) from None
        why = str(error).partition("WeightsUnpickler error:")[2].strip() or str(error)  # after advice to load it unsafely
        raise ValueError(f"{file} is damaged, or not what torch.save writes: {_line(why)}") from None
    except Exception as error:
        raise ValueError(f"{file} is damaged, or cut off: {_line(error)}") from None


def _check_sums(file: Path) -> None:
    """torch.save writes a checksum of every tensor, and torch.load does not look at it; 1 GB/s. Raises ValueError."""

    def records() -> Iterator[tuple[str, bool]]:
        with zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
            size = sum(info.file_size for info in listed)
            with tqdm(total=size, desc=f"checking {file.name}", unit="B", unit_scale=True, disable=None, delay=2) as bar:
                for info in listed:
                    try:
                        with archive.open(info) as record:
                            while part := record.read(1 << 22):
                                bar.update(len(part))
                        yield info.filename, True
                    except zipfile.BadZipFile:
                        yield info.filename, False

    whole = _guarded(file, lambda: dict(records()))
    wrong = [name for name, right in whole.items() if not right]
    if wrong and any(whole[name] for name in whole if "/data" in name):  # none is right where they were not written
        raise ValueError(f"{file} is damaged: the checksum of {wrong[0]} is wrong")


def _line(error: BaseException | str) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:200]
