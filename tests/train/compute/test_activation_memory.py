"""Predictions of memory against what autograd saves and what the allocator hands out."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.activation_memory import activations_in, activations_of, measured_peak, predicted_peak
from model.action_detector import Regions
from model.config import MODELS, Implementation
from model.layers import Block
from model.videomae import VideoMAE
from pipeline.sampling.masking import token_counts
from train.augmentation import AugmentConfig
from train.compute.activation_checkpointing import checkpoint_block, checkpoint_blocks, recomputed_blocks, within_budget
from train.compute.memory import (
    GIB,
    BlockShape,
    activation_bytes,
    largest,
    recomputed_share,
    step_memory,
)
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig, Policy
from train.detection.multi_label import box_loss
from train.soft_labels import soft_cross_entropy, soft_labels
from train.stages.detecting import DetectConfig, Detecting
from train.stages.finetuning import FinetuneConfig, Finetuning
from train.stages.pretraining import autoencoder_cost


@pytest.mark.parametrize(
    ("name", "precision", "tolerance"),
    [
        ("tiny", "fp32", 0.0),
        ("tiny", "paper", 1e-3),
        ("vit-s", "fp32", 0.0),
        pytest.param("vit-s", "bf16", 1e-3, marks=pytest.mark.slow),
    ],
)
def test_activations_are_those_that_autograd_saves(name: str, precision: str, tolerance: float) -> None:
    """To the byte in float32, but for the loss's own 4; a CPU has smaller statistics of half-precision norms."""
    config, dtypes = MODELS[name], PRECISIONS[precision]
    tokens = token_counts(config.grid, 0.9, 0.5)
    cost, plain = autoencoder_cost(config, tokens, dtypes), None
    for text in ("none", "every:3", "full"):
        recomputed = recomputed_blocks(Policy.parse(text), cost, 1)
        found = activations_of(config, tokens, dtypes, recomputed)
        plain = plain or found
        predicted = activation_bytes(cost, recomputed)
        assert predicted - found.kept_bytes == pytest.approx(-4, abs=tolerance * predicted), text
        again = (found.step_flops - plain.step_flops) / (3 * plain.forward_flops)
        assert again == pytest.approx(recomputed_share(cost, recomputed), rel=1e-9), text


def test_a_classifier_keeps_what_its_cost_says() -> None:
    """In float32, with stochastic depth and head dropout: to a few bytes, of what they draw."""
    config, nothing = MODELS["tiny"], AugmentConfig(flip=0, erasing=0, mixup=0, cutmix=0)
    how = {"augment": nothing, "crop_resize": "antialiased"}  # the model makes floats of uint8
    stage = Finetuning(FinetuneConfig(model=config, expected_classes=174, head_dropout=0.5, **how))
    cost = stage.cost(ComputeConfig(precision="fp32"))
    with FakeTensorMode():
        views = torch.zeros(1, config.num_frames, config.input_size, config.input_size, 3, dtype=torch.uint8)
        keep, features = torch.ones(4, 1, 2, dtype=torch.bool), torch.ones(1, config.encoder_dim, dtype=torch.bool)
        labels = soft_labels(torch.zeros(1, dtype=torch.int64), 174, 0.1)
        for text in ("none", "full"):
            model, recomputed = stage.model(Implementation()), recomputed_blocks(Policy.parse(text), cost, 1)
            checkpoint_blocks([*model.blocks], recomputed)
            loss = partial(lambda m: soft_cross_entropy(m(views, keep, features), labels), model)
            found = activations_in(model, loss)
            assert activation_bytes(cost, recomputed) - found.kept_bytes == pytest.approx(0, abs=64), text
            assert found.forward_flops == pytest.approx(2e9 * cost.gmac, rel=1e-9)


def test_a_detector_keeps_what_its_cost_says() -> None:
    """In float32, with stochastic depth and as many boxes as there may be: to what their places and labels take."""
    config = MODELS["tiny"]
    stage = Detecting(DetectConfig(model=config, short_sides=(64, 72), most_boxes=7))
    cost = stage.cost(ComputeConfig(precision="fp32"))
    with FakeTensorMode():
        views = torch.zeros(1, config.num_frames, config.input_size, config.input_size, 3, dtype=torch.uint8)
        keep, labels = torch.ones(4, 1, 2, dtype=torch.bool), torch.zeros(7, 80, dtype=torch.bool)
        regions = Regions(torch.zeros(7, 4), torch.zeros(7, dtype=torch.int64))
        for text in ("none", "full"):
            model, recomputed = stage.model(Implementation()), recomputed_blocks(Policy.parse(text), cost, 1)
            checkpoint_blocks([*model.blocks], recomputed)
            found = activations_in(model, partial(lambda m: box_loss(m(views, regions, keep), labels), model))
            assert activation_bytes(cost, recomputed) == pytest.approx(found.kept_bytes, abs=1024), text
            assert found.forward_flops == pytest.approx(2e9 * cost.gmac, rel=1e-9)


@pytest.mark.parametrize(
    ("precision", "policy", "defer"), [("fp32", "none", False), ("fp32", "full", False), ("bf16", "every:2", False)]
)
@pytest.mark.slow
def test_the_peak_of_a_step_is_what_a_dry_run_says(precision: str, policy: str, defer: bool) -> None:
    config, views = MODELS["tiny"], 4
    # the closed form is of flash attention; "auto" on a CPU in bf16 keeps the matrices of pairs, too
    options = {"precision": precision, "attention": "flash", "activation_checkpointing": policy, "defer_gradients": defer}
    compute = ComputeConfig(**options)  # type: ignore[arg-type]
    peak = measured_peak(config, compute, views)
    # of one process on a CPU, gradients lie in memory that stays from step to step (on_cpu.py), which no step allocates
    kept = 4 * sum(parameter.numel() for parameter in VideoMAE(config).parameters())
    assert predicted_peak(config, compute, views) == pytest.approx(peak + kept, rel=0.03)


def test_state_of_vit_g_on_eight_ranks() -> None:
    """16 bytes a parameter over eight ranks, and its copy in bf16; the decoder's 2,234 rows are shared as 280 each."""
    config, dtypes = MODELS["vit-g"], PRECISIONS["bf16"]
    cost = autoencoder_cost(config, token_counts(config.grid, 0.9, 0.5), dtypes)
    none = [False] * 44
    memory = step_memory(cost, none, views=128, shard=8)
    parameters = 1_026_306_560
    assert memory.parameters + memory.moments + memory.gradients == pytest.approx(2 * parameters, rel=1e-3)
    assert memory.gathered == 2 * parameters
    assert memory.activations == 128 * activation_bytes(cost, none)
    resharded = step_memory(cost, none, views=128, shard=8, reshard=True).gathered
    sizes = cost.sizes
    assert resharded == 2 * (parameters - sum(sizes.blocks) + 3 * max(sizes.blocks))
    deferred = step_memory(cost, none, views=128, shard=8, defer=True)
    assert deferred.gradients - memory.gradients == 4 * parameters


def test_blocks_that_are_not_trained_keep_nothing() -> None:
    config = MODELS["tiny"]
    cost = autoencoder_cost(config, token_counts(config.grid, 0.9, 0.5), PRECISIONS["fp32"])
    frozen = cost.with_frozen(3)
    kept = cost.shapes[0].kept_bytes
    assert activation_bytes(cost) - activation_bytes(frozen) == 3 * kept
    assert cost.flops - frozen.flops == pytest.approx(2 * 2 * 3 * cost.shapes[0].mac)  # no backward pass
    none = [False] * len(cost.shapes)
    assert step_memory(frozen, none, views=8).total < step_memory(cost, none, views=8).total
    assert recomputed_share(frozen, [True] * 3 + none[3:]) == 0


def test_a_budget_takes_the_fewest_flops_that_fit() -> None:
    config, dtypes, views = MODELS["tiny"], PRECISIONS["fp32"], 10
    cost = autoencoder_cost(config, token_counts(config.grid, 0.9, 0.5), dtypes)
    shapes = cost.shapes
    least = activation_bytes(cost, [True] * len(shapes))
    most = activation_bytes(cost)
    assert within_budget(cost, views, views * most) == [False] * len(shapes)
    assert within_budget(cost, views, views * least) == [True] * len(shapes)
    budget = views * (least + most) / 2
    chosen = within_budget(cost, views, budget)

    def kept(choice: list[bool]) -> int:
        return views * activation_bytes(cost, choice)

    def again(choice: list[bool]) -> float:
        return recomputed_share(cost, choice)

    assert kept(chosen) <= budget
    for number in range(2 ** len(shapes)):
        other = [bool(number >> i & 1) for i in range(len(shapes))]
        assert kept(other) > budget or again(other) >= again(chosen) * (1 - 1e-12)
    with pytest.raises(ValueError, match=r"10 views keep .* GiB even if every block runs again; .*views-per-forward to 9 or"):
        within_budget(cost, views, views * least - 1)


@pytest.mark.parametrize("text", ["", "some", "full:2", "every", "every:0", "every:2.5", "budget", "budget:-1", "budget:inf"])
def test_other_policies_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match='must be "auto", "none", "full", "every:K"'):
        ComputeConfig(activation_checkpointing=text)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.slow
def test_a_compiled_block_keeps_the_same(again: bool) -> None:
    """Dynamo takes the whole block, and its partitioner saves what eager mode does, or the input alone."""
    views, dim, mlp_dim, heads, tokens = 2, 64, 256, 2, 24
    torch._dynamo.reset()
    block = Block(dim, heads, mlp_dim)
    if again:
        checkpoint_block(block)
    block.compile(fullgraph=True, dynamic=False, backend="aot_eager_decomp_partition")
    own = {tensor.untyped_storage()._cdata for tensor in (*block.parameters(), *block.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        block(torch.randn(views, tokens, dim, requires_grad=True)).sum().backward()
    shape = BlockShape(tokens, tokens, dim, mlp_dim, heads, torch.float32)
    kept = sum(storage.nbytes() for storage in saved.values())
    assert kept == views * (shape.input_bytes if again else shape.kept_bytes)


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 100, 127, 128, 129])
def test_the_largest_that_fits(limit: int) -> None:
    assert largest(lambda number: number <= limit) == limit


def test_gib() -> None:
    assert Policy.parse("budget:1.5") == Policy("budget", 1.5)
    assert GIB == 1024**3
