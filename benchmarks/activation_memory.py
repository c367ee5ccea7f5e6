#!/usr/bin/env python3
"""What activation checkpointing saves and costs: bytes kept by a view, FLOPs run again, the peak of a step.

    tubecell activation-memory                        # ViT-B to ViT-g in bf16
    tubecell activation-memory --models vit-s --precision fp32 --peak-views 4

Bytes and FLOPs come from the model itself, in its real size, on tensors without data: hooks on what autograd saves, and torch's
counter of FLOPs. They stand beside the closed forms of train/compute/memory.py, which the trainer plans with. The attention
is a CPU's;
a GPU's keeps the same tensors, and the norms' statistics in 4 bytes where a CPU takes 2 in bf16 (0.05 %).
`--peak-views N` runs real steps of N views on this CPU and compares the allocator's peak with what --dry-run predicts.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    if not __package__:  # a script: its own folder leads the path, where the checkout is to
        sys.path[: 1 - sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

    from pipeline.console import prepare

    prepare()

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from benchmarks.parts.flop_counter import flop_counter
from benchmarks.parts.program import WithFigures, program
from benchmarks.parts.results import Result, describe_machine
from benchmarks.parts.step_work import pretraining, random_batch
from model.config import MODELS, ModelConfig
from model.videomae import VideoMAE, pixel_loss
from pipeline.sampling.masking import TokenCounts, token_counts
from train.compute.activation_checkpointing import checkpoint_blocks, recomputed_blocks
from train.compute.memory import activation_bytes, recomputed_share, step_memory
from train.compute.parallel import started
from train.compute.precision import PRECISIONS, Precision
from train.config import ComputeConfig, Policy
from train.loop import step
from train.stages.pretraining import autoencoder_cost
from train.training import Training

POLICIES = ("none", "every:4", "every:3", "every:2", "full")


@dataclass(frozen=True, kw_only=True, slots=True)
class Options(WithFigures):
    """What to print."""

    models: tuple[str, ...] = ("vit-b", "vit-l", "vit-h", "vit-g")
    """Named models."""
    precision: Literal["bf16", "fp32", "fp16", "paper"] = "bf16"
    """Of the activations."""
    policies: tuple[str, ...] = POLICIES
    """As --compute.activation-checkpointing takes them."""
    peak_views: int = 0
    """Run real steps of so many views, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Of one view."""

    kept_bytes: int
    """Saved for the backward pass, parameters left out."""
    forward_flops: int
    step_flops: int
    """Forward and backward pass, with what runs again."""


def activations_of(
    config: ModelConfig, tokens: TokenCounts, precision: Precision, recomputed: Sequence[bool] | None = None
) -> Activations:
    """Run the model on one view without data."""
    with FakeTensorMode():
        model = in_compute_type(config, precision)
        if recomputed:
            checkpoint_blocks([*model.encoder.blocks, *model.decoder.blocks], recomputed)
        return activations_in(model, lambda: pixel_loss(model, *batch(config, tokens, 1)))


def activations_in(model: nn.Module, loss: Callable[[], Tensor]) -> Activations:
    """Of a forward and a backward pass through the model, parameters left out."""
    saved: dict[int, torch.UntypedStorage] = {}
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            saved[storage._cdata] = storage
        return tensor

    with flop_counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            value = loss()
        forward, kept = counter.get_total_flops(), sum(storage.nbytes() for storage in saved.values())
        value.backward()
    return Activations(kept_bytes=kept, forward_flops=forward, step_flops=counter.get_total_flops())


def in_compute_type(config: ModelConfig, precision: Precision) -> VideoMAE:
    """The model with parameters as FSDP2 hands them out, and its casts at the encoder's ends."""
    with torch.device("meta"):
        model = VideoMAE(config)
    encoder = set(model.encoder.modules())
    for module in model.modules():
        dtype = precision.encoder if module in encoder else precision.decoder
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(torch.empty(parameter.shape, dtype=dtype)))
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, torch.empty(buffer.shape), persistent=False)
    model.encoder.register_forward_pre_hook(lambda _, given: (given[0].to(precision.encoder), *given[1:]))
    model.encoder.register_forward_hook(lambda *given: given[-1].to(precision.decoder))
    return model


def batch(config: ModelConfig, tokens: TokenCounts, views: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Grey views, and tokens in their order: what is computed does not depend on it."""
    side, order = config.input_size, torch.arange(config.num_tokens).expand(views, -1)
    pixels = torch.zeros(views, config.num_frames, side, side, 3, dtype=torch.uint8)
    return pixels, order[:, : tokens.visible], order[:, -tokens.decoded :], torch.ones(views, tokens.loss)


def measured_peak(config: ModelConfig, compute: ComputeConfig, views: int) -> int:
    """Most bytes that this CPU's allocator had handed out at once in a step of two passes over `views`, beyond weights, moments
    and inputs. It is the second step: the first one makes the moments."""
    with started("cpu") as ranks:
        stage = pretraining(config, replace(compute, views_per_forward=views), views=2 * views)
        training, batch = Training(stage, ranks), random_batch(config, views, 0.5, ranks.device)
        step(training, 1, lambda: batch)
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step(training, 2, lambda: batch)
        assert profiler.profiler is not None
        used = peak = 0
        for event in profiler.profiler.kineto_results.events():
            if event.name() == "[memory]":
                used += event.nbytes()
                peak = max(peak, used)
        del training
        return peak


def predicted_peak(config: ModelConfig, compute: ComputeConfig, views: int) -> int:
    """The same from the closed form."""
    cost = pretraining(config, compute).cost(compute)
    recomputed = recomputed_blocks(Policy.parse(compute.activation_checkpointing), cost, views)
    memory = step_memory(cost, recomputed, views=views, defer=compute.defer_gradients)
    return memory.total - memory.parameters - memory.moments - memory.inputs


@program(Options)
def main(options: Options) -> list[Result]:
    if unknown := set(options.models) - set(MODELS):
        raise ValueError(f"--models {' '.join(sorted(unknown))}: known are {', '.join(MODELS)}")
    policies = {text: Policy.parse(text) for text in options.policies}
    precision, views, results = PRECISIONS[options.precision], options.peak_views, list[Result]()
    print(f"{options.precision}, masks of 0.9 and 0.5, {describe_machine()}")
    print(f"{'':<22}{'MiB kept by a view':>26}{'FLOPs again, of a step':>26}{'peak of a step, MiB':>26}")
    print(f"{'':<22}" + 3 * f"{'measured':>16}{'formula':>10}")
    for name in options.models:
        config = MODELS[name]
        tokens = token_counts(config.grid, 0.9, 0.5)
        cost, plain = autoencoder_cost(config, tokens, precision), activations_of(config, tokens, precision)
        for text, policy in policies.items():
            recomputed = recomputed_blocks(policy, cost, max(views, 1))
            found = activations_of(config, tokens, precision, recomputed)
            again = (found.step_flops - plain.step_flops) / (3 * plain.forward_flops)
            kept = activation_bytes(cost, recomputed)
            share = recomputed_share(cost, recomputed)
            line = f"{name:<8}{text:<14}{found.kept_bytes / 2**20:>16.2f}{kept / 2**20:>10.2f}{again:>16.2%}{share:>10.2%}"
            prefix = f"activations/{name}/{options.precision}/{text}"
            results.append(Result(f"{prefix}/kept", found.kept_bytes, "bytes", kept))
            results.append(Result(f"{prefix}/again", again, "of a step's FLOPs"))
            if views:
                compute = ComputeConfig(precision=options.precision, activation_checkpointing=text, views_per_forward=views)
                peak, expected = (get(config, compute, views) for get in (measured_peak, predicted_peak))
                line += f"{peak / 2**20:>16.1f}{expected / 2**20:>10.1f}"
                results.append(Result(f"{prefix}/peak", peak, "bytes", expected))
            print(line, flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
