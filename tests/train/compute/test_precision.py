"""A hundred steps in every preset beside float32, with the guard and the loss scaling of a real run."""

from dataclasses import replace
from functools import cache
from typing import get_args, get_type_hints

import pytest
import torch

from benchmarks.parts.step_work import pretraining, random_batch
from model.videomae import pixel_loss
from tests.train.parallel_cases import MODEL, TOKENS
from train.compute.optimizer import lr_at, set_lr
from train.compute.parallel import started
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig
from train.loop import step
from train.training import Training

STEPS, VIEWS = 100, 4
# largest and mean distance of the loss from float32's, relative, that a preset may have
BOUNDS = {"bf16": (2e-2, 5e-3), "tf32": (0.0, 0.0), "fp16": (1e-2, 2e-3), "paper": (1e-2, 2e-3)}


@cache
def curve(precision: str) -> tuple[torch.Tensor, float | None]:
    """The losses of the steps, and the loss scale at the end. Views are smooth: there is something to learn."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(3 * VIEWS, 3, 2, 4, 4, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (MODEL.num_frames, 32, 32), mode="trilinear")
    views = (255 * fine).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
    order = torch.stack([torch.randperm(MODEL.num_tokens, generator=generator) for _ in range(3 * VIEWS)])
    losses = []
    with started("cpu") as ranks:
        compute = ComputeConfig(precision=precision)  # type: ignore[arg-type]
        training = Training(pretraining(MODEL, compute, views=VIEWS, clip_grad=1.0), ranks, memory=STEPS)
        scaled = PRECISIONS[precision].loss_scaling
        for number in range(STEPS):
            set_lr(training.optimizer, lr_at(number, peak=3e-3, final=1e-4, total_steps=STEPS, warmup_steps=10))
            some = slice(VIEWS * (number % 3), VIEWS * (number % 3 + 1))
            tokens = order[some, : TOKENS.visible], order[some, -TOKENS.decoded :]
            batch = replace(random_batch(MODEL, VIEWS, 0.5, ranks.device), views=views[some], visible=tokens[0])
            batch = replace(batch, decoded=tokens[1], loss_weight=torch.ones(VIEWS, TOKENS.loss))
            losses += step(training, number + 1, lambda batch=batch: batch).losses
        reading = training.guard.read()
        assert reading.total == len(reading.skipped)
        assert reading.total <= (2 if scaled else 0), reading.skipped
        del training
    return torch.stack(losses), reading.loss_scale


def test_float32_learns() -> None:
    losses, scale = curve("fp32")
    assert losses[-10:].mean() < 0.9 * losses[:10].mean()
    assert scale is None


@pytest.mark.parametrize(
    "precision", [name if name in ("bf16", "fp16") else pytest.param(name, marks=pytest.mark.slow) for name in BOUNDS]
)
def test_a_preset_follows_float32(precision: str) -> None:
    losses, scale = curve(precision)
    expected, _ = curve("fp32")
    distance = ((losses - expected) / expected).abs()
    most, mean = BOUNDS[precision]
    assert distance.max() <= most
    assert distance.mean() <= mean
    assert (scale is not None) == PRECISIONS[precision].loss_scaling
    if precision != "tf32":  # a CPU has no tensor cores: the same bits
        assert distance.max() > 0


def test_the_configuration_names_every_preset() -> None:
    assert set(get_args(get_type_hints(ComputeConfig)["precision"])) == set(PRECISIONS)


def test_types_of_the_paper_preset() -> None:
    """Encoder in float16 up to the latent, decoder and head in float32, parameters and gradients float32 throughout."""
    seen: dict[str, torch.dtype] = {}
    with started("cpu") as ranks:
        model = Training(pretraining(MODEL, ComputeConfig(precision="paper")), ranks).model
        for name in ("encoder.patch_embed", "encoder.blocks.1", "encoder.norm", "encoder_to_decoder", "decoder.blocks.0"):
            model.get_submodule(name).register_forward_hook(lambda _, given, out, name=name: seen.update({name: out.dtype}))
        views = torch.zeros(1, MODEL.num_frames, 32, 32, 3, dtype=torch.uint8)
        order = torch.arange(MODEL.num_tokens)[None]
        pixel_loss(model, views, order[:, : TOKENS.visible], order[:, -TOKENS.decoded :], torch.ones(1, TOKENS.loss)).backward()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert {parameter.grad.dtype for parameter in model.parameters() if parameter.grad is not None} == {torch.float32}
        del model
    half = ("encoder.patch_embed", "encoder.blocks.1", "encoder.norm")
    assert seen == {name: torch.float16 if name in half else torch.float32 for name in seen}
    assert len(seen) == 5
