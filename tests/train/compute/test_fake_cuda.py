"""Steps on CUDA tensors without values, and without a card: nothing of the CPU meets them, and nothing is read back."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from benchmarks.parts.step_work import finetuning, labelled_batch, pretraining, random_batch, tokens_of
from model.compiler import compile_blocks
from model.config import MODELS, Implementation, ModelConfig
from model.layers import Block
from model.linear_heads import LinearHeads
from model.videomae import Encoder, loss_function, weighted_error
from pipeline.loader import Batch
from pipeline.sampling.draws import Draws
from tests.train.compute.fake_cuda import CUDA, Writer, engine, fake_cuda, flash
from train import loop
from train.augmentation import AugmentConfig
from train.compute.optimizer import ShardedSGD, build_optimizer, set_lr
from train.compute.parallel import implementation
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig
from train.stages.probing import Probing
from train.targets.features import FeatureTargets
from train.watch.guard import Guard


def shallow(name: str) -> ModelConfig:
    """Every block of a kind is as the first."""
    return replace(MODELS[name], encoder_depth=1, decoder_depth=2)


def built(stage: Any, dtype: torch.dtype) -> Any:
    """Its model with weights in the compute type, as FSDP2 hands them out."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device(CUDA):
            model = stage.model(Implementation(tokens="reference", align_mlp=True))
    finally:
        torch.set_default_dtype(torch.float32)
    return model


# Triton's kernels and the gigabytes that they move, forward and backward, of ViT-g in bf16 at 128 views
MOVED = {
    "encoder": [(5, 1.33), (15, 3.04)],
    "decoder": [(8, 2.88), (18, 6.56)],
    "last": [(8, 2.28), (19, 5.04)],
    "loss": [(3, 0.83), (1, 1.11)],
}


class OnHost(np.ndarray):
    """What a batch tells the host; of tensors without values it could not be asked."""

    def numpy(self) -> np.ndarray:
        return self


def moved(batch: Batch) -> Batch:
    """A batch of the CPU as one on CUDA."""
    tensors = {name: getattr(batch, name) for name in ("views", "visible", "decoded", "loss_weight")}
    on_cuda = {name: torch.empty(t.shape, dtype=t.dtype, device=CUDA) for name, t in tensors.items() if t is not None}
    return replace(batch, **on_cuda)


class Undeceived(Guard):
    """The guard and the optimizer, which have no backward pass, see CUDA in C++, too."""

    def step(self, *args: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with mock.patch.object(engine, "deceived", False):
            return super().step(*args)


def step(stage: Any, precision: str, batch: Any, change: Callable[[Any], None] = lambda model: None) -> loop.Step:
    """A step of the loop, of two passes, unsharded. Optimizer and guard are the trainer's."""
    model = built(stage, PRECISIONS[precision].decoder)
    change(model)
    config, parameters = stage.config, [*model.parameters()]
    optim = replace(config.optim, spike_factor=5.0)
    groups = stage.groups(model)
    training = SimpleNamespace(
        stage=stage,
        model=model,
        compute=config.compute,
        passes=2,
        mean=None,
        parameters=parameters,
        optimizer=build_optimizer(groups, optim.betas, optim.eps) if optim.optimizer == "adamw" else ShardedSGD(groups, 0.9),
        guard=Undeceived(optim, passes=2, memory=4, device=CUDA, scaled=PRECISIONS[precision].loss_scaling, state=None),
        draws=lambda batch: Draws(config.sampling, batch.epoch, batch.positions.numpy()),
    )
    set_lr(training.optimizer, 1e-3)
    generators = Draws.generators
    with (
        mock.patch("torch.distributed.get_world_size", lambda: 1),
        mock.patch.object(loop, "exchange_gradients", lambda *args, **kwargs: None),
        mock.patch.object(Draws, "generators", lambda draws, purpose, device: generators(draws, purpose)),  # a card's need it
    ):
        return loop.step(training, 1, lambda: batch)  # type: ignore[arg-type]


def told(batch: Batch) -> Batch:
    """Before tensors lose their values."""
    every: Any = batch.rows.numpy().view(OnHost)
    return replace(batch, positions=every, rows=every)


def masked(name: str) -> Batch:
    return told(random_batch(shallow(name), 2, 0.5, torch.device("cpu")))


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("vit-g", "bf16"),
        ("vit-g", "fp16"),
        ("vit-g", "fp32"),
        ("vit-b", "bf16"),
        pytest.param("vit-b", "fp16", marks=pytest.mark.slow),
        pytest.param("vit-b", "fp32", marks=pytest.mark.slow),
    ],
)
def test_a_step_of_pre_training(name: str, precision: Any) -> None:
    stage = pretraining(shallow(name), ComputeConfig(precision=precision, tokens="reference", views_per_forward=2), views=4)
    batch = masked(name)
    with fake_cuda():
        done = step(stage, precision, moved(batch))
    assert {each.device for each in (*done.losses, done.norm, done.taken)} == {CUDA}
    assert done.losses[0].dtype == torch.float32


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_of_fine_tuning(precision: Any) -> None:
    """With all that is random in it."""
    compute = ComputeConfig(precision=precision, views_per_forward=2)
    stage = finetuning(shallow("vit-b"), compute, views=4)
    augment = AugmentConfig(randaugment="rand-m7-n16-mstd0.5-inc1", randaugment_by="device")
    stage.config = replace(stage.config, augment=augment)
    batch = told(labelled_batch(stage, torch.device("cpu")))
    batch = replace(batch, views=batch.views.short())
    with fake_cuda():
        done = step(stage, precision, moved(batch))
    assert {each.device for each in (*done.losses, done.norm, done.taken)} == {CUDA}


def test_a_probe_and_a_teacher() -> None:
    """The heads' pass with its figures, and the features that pre-training may predict."""
    stage, sizes = finetuning(shallow("tiny"), ComputeConfig(views_per_forward=2), views=4), shallow("tiny")
    batch, plain = told(labelled_batch(stage, torch.device("cpu"))), masked("tiny")
    with fake_cuda():
        with torch.device(CUDA):
            model, encoder = LinearHeads(sizes.encoder_dim, 8, 2), Encoder(sizes)
            features = torch.empty(len(batch.views), sizes.encoder_dim)
        batch, plain = moved(batch), moved(plain)
        config = SimpleNamespace(flip=0.5, heads=["one", "two"])
        probe: Any = SimpleNamespace(config=config, _encoder=lambda views: features)
        draws = Draws(stage.config.sampling, 0, batch.positions.numpy())
        loss, figures = Probing.loss(probe, model, batch, draws)
        loss.backward()
        target: Any = SimpleNamespace(_teacher=encoder, _sizes=sizes)
        made = FeatureTargets.__call__(target, plain.views, plain.visible, plain.decoded, torch.bfloat16)  # type: ignore[arg-type]
    assert {each.device for each in (loss, *figures.values(), *made)} == {CUDA}
    assert all(parameter.grad is not None and parameter.grad.device == CUDA for parameter in model.parameters())


def forget_the_table(model: Any) -> None:
    model.encoder.positions.table = torch.empty(model.encoder.positions.table.shape)


def add_in_the_backward_pass(model: Any) -> None:
    model.mask_token.register_hook(lambda gradient: gradient + torch.ones(gradient.shape))


def read_a_value(model: Any) -> None:
    model.encoder.register_forward_hook(lambda module, given, latent: latent * latent.float().amax().item())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (forget_the_table, RuntimeError, "found at least two devices"),
        (add_in_the_backward_pass, RuntimeError, "found at least two devices"),
        (read_a_value, DataDependentOutputException, "_local_scalar_dense"),
    ],
)
def test_what_would_not_do(change: Callable[[Any], None], error: type[Exception], words: str) -> None:
    """A tensor of the CPU, in either pass, and a value that the host reads."""
    stage = pretraining(shallow("tiny"), ComputeConfig(tokens="reference", views_per_forward=2), views=4)
    batch = masked("tiny")
    with fake_cuda(), pytest.raises(error, match=words):
        step(stage, "bf16", moved(batch), change)


def test_the_loss_is_compiled_where_blocks_are_on_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr("train.compute.parallel.compiler_missing", lambda kind: None)
    compiles = {
        (kind, asked): implementation(ComputeConfig(compile=asked), torch.device(kind)).compile_loss
        for kind in ("cuda", "cpu")
        for asked in (None, True, False)
    }
    assert [key for key, value in compiles.items() if value] == [("cuda", None), ("cuda", True)]
    assert loss_function(Implementation()) is weighted_error  # and older runs' bits are theirs
    assert loss_function(Implementation(compile_loss=True))._torchdynamo_orig_callable is weighted_error


@pytest.mark.slow
@pytest.mark.skipif(not torch.__version__.startswith("2.15."), reason="private parts of Inductor, and counts of this version")
def test_what_inductor_writes_for_vit_g() -> None:
    """Of each kind of block and of the loss: one graph, and no more to move than what was counted when it was looked at."""
    config, views = MODELS["vit-g"], 128
    tokens = tokens_of(config, dual=True)
    V, N, L = tokens.visible, tokens.visible + tokens.decoded, tokens.loss
    how = Implementation(align_mlp=True)
    sizes = {
        "encoder": (V, config.encoder_dim, config.encoder_heads, config.encoder_mlp_dim),
        "decoder": (N, config.decoder_dim, config.decoder_heads, config.decoder_mlp_dim),
    }
    found: dict[str, list[tuple[int, float]]] = {}
    with fake_cuda():
        for name, kept in (("encoder", None), ("decoder", None), ("last", slice(V, V + L))):
            n, dim, heads, mlp = sizes["decoder" if name == "last" else name]
            torch.set_default_dtype(torch.bfloat16)
            with torch.device(CUDA):
                block, x = Block(dim, heads, mlp, how=how), torch.empty(views, n, dim, requires_grad=True)
            torch.set_default_dtype(torch.float32)
            block.attn.product = flash
            writer = Writer()
            compile_blocks([block], backend=writer)
            x_out = block(x, kept)
            x_out.backward(torch.empty_like(x_out))
            found[name] = figures_of(writer)
        writer = Writer()
        loss = torch.compile(weighted_error, fullgraph=True, dynamic=False, backend=writer)
        prediction = torch.empty(views, L, config.patch_values, dtype=torch.bfloat16, device=CUDA, requires_grad=True)
        target, weight = torch.empty(prediction.shape, device=CUDA), torch.empty(views, L, device=CUDA)
        loss(prediction, target, weight).backward()
        found["loss"] = figures_of(writer)
    for name, passes in MOVED.items():
        for (kernels, gigabytes), (most, expected) in zip(found[name], passes, strict=True):
            assert 0 < kernels <= most, (name, found[name])
            assert expected / 2 < gigabytes < 1.02 * expected, (name, found[name])


def figures_of(writer: Writer) -> list[tuple[int, float]]:
    """Kernels and gigabytes, forward and backward, of one graph of Dynamo's, in which nothing is made on the CPU."""
    assert writer.traced == 1 and len(writer.graphs) == 2
    assert not any("empty_strided_cpu(" in graph.code for graph in writer.graphs)
    return [(graph.kernels, round(graph.gigabytes, 2)) for graph in writer.graphs]
