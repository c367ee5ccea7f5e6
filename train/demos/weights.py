"""Weights of a command line, on a device."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from model.video_encoder import VideoEncoder, encoder_of
from model.weights import Weights
from pipeline.console import complain
from pipeline.decoding.decode import DecodeError
from train.checkpoint.source import read_once
from train.compute.device import device_kind
from train.compute.on_cpu import attend_plainly
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS

HINTS = ("encoder_heads", "decoder_heads", "input_size", "num_frames")
Model = TypeVar("Model", bound=nn.Module)
REFUSED = (DecodeError, OSError, ValueError, MemoryError)  # what a single video may end with; the others go on


def add_options(parser: argparse.ArgumentParser, positional: bool | str = False, flag: str = "--weights") -> None:
    """With a flag, or the place of weights as an argument; "*": any number of places."""
    what = "official, Hugging Face's or timm's file or folder; or a run of ours"
    if positional == "*":
        parser.add_argument("weights", nargs="*", metavar="WEIGHTS", help=what)
    elif positional:
        parser.add_argument("weights", metavar="RUN_OR_WEIGHTS", help=what)
    else:
        parser.add_argument(flag, dest="weights", required=True, metavar="W", help=what)
    parser.add_argument("--key", help="the dictionary of a checkpoint, or of a run's weights model_ema, best or best_ema")
    for flag, name, what in (
        ("--heads", "encoder_heads", "attention heads of the encoder"),
        ("--decoder-heads", "decoder_heads", "those of the decoder"),
        ("--input-size", "input_size", "height and width of a view in pixels"),
        ("--num-frames", "num_frames", "frames of a view"),
    ):
        parser.add_argument(flag, dest=name, type=int, metavar="N", help=f"{what}, where the weights do not tell")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: CUDA if there is one")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: bf16 on CUDA, fp32 on a CPU")


def read(options: argparse.Namespace, place: str | None = None) -> Weights:
    """Of several ranks the first reads: see `read_once`. `place`: one of several. Raises ValueError, in a line, for what is no
    weights, and for another network than ours."""
    weights = read_once(place or options.weights, key=options.key, **{name: getattr(options, name) for name in HINTS})
    weights.check_same()
    return weights


def build(weights: Weights, options: argparse.Namespace) -> Any:
    """The model. Raises ValueError if there is no such device."""
    device = device_kind(options.device, "--device")
    precision = options.precision or ("bf16" if device == "cuda" else "fp32")
    return weights.build().to(device, PRECISIONS[precision].encoder)


def tell(program: str, video: object, error: Exception) -> None:
    """Why there is nothing of a video: a line."""
    complain(printable(f"{program}: {video}: {reason(error)}"))


def reason(error: Exception) -> str:
    """What one of REFUSED says."""
    detail = error.detail if isinstance(error, DecodeError) else getattr(error, "strerror", None) or str(error)
    return detail or type(error).__name__


def short(name: str, length: int = 60) -> str:
    """A name of a file for the title of a picture."""
    return printable(name if len(name) <= length else f"{name[: length - 20]} … {name[-17:]}")


def printable(text: str) -> str:
    """On one line, whatever names of files and of classes have in them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def on_ranks(weights: Weights, ranks: Ranks, make: Callable[[Weights], Model]) -> Model:
    """What `make` builds, on this rank's device, with the weights that rank 0 has read. All ranks call it."""
    if ranks.rank:
        weights = replace(weights, tensors={name: torch.empty(each.shape) for name, each in weights.tensors.items()})
    model = make(weights)
    if ranks.device.type == "cpu":
        attend_plainly(model)
    if ranks.world_size > 1:
        for parameter in model.parameters():
            dist.broadcast(parameter.detach(), 0)
    return model


def encoder_on(weights: Weights, precision: str, ranks: Ranks) -> VideoEncoder:
    """On this rank's device, with the weights that rank 0 has read."""
    dtype = PRECISIONS[precision].encoder
    return on_ranks(weights, ranks, lambda whole: encoder_of(whole).to(ranks.device, dtype))
