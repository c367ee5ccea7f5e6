"""Nothing in a training step makes the host wait for the device: no value is read, no shape depends on values."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.parts.step_work import finetuning, labelled_batch, pretraining, random_batch
from model.classifier import VideoClassifier
from model.config import MODELS
from model.weights import metadata_of
from train.compute.optimizer import set_lr
from train.compute.parallel import started
from train.config import ComputeConfig
from train.loop import step
from train.recipes.distilling import as_student
from train.stages.distilling import Distilling
from train.training import Training

# reading a value (.item(), bool(), tolist()), and results whose shape is known only when they are computed
WAITING = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount"}


class RefuseWaiting(TorchDispatchMode):
    """Raises at the first operation that would wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen.add(name)
        assert name not in WAITING, name
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            assert not any(index is not None and index.dtype == torch.bool for index in args[1]), "a boolean index"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_reads_nothing_back(precision):
    compute = ComputeConfig(precision=precision, activation_checkpointing="every:2", views_per_forward=2)
    with started("cpu") as ranks:
        check_step(ranks, pretraining(MODELS["tiny"], compute, views=4), random_batch(MODELS["tiny"], 2, 0.5, ranks.device))


def test_nor_does_one_of_fine_tuning():
    """With all that is random in it."""
    with started("cpu") as ranks:
        stage = finetuning(MODELS["tiny"], ComputeConfig(views_per_forward=2), views=4, classes=8)
        check_step(ranks, stage, labelled_batch(stage, ranks.device))


def test_nor_does_one_of_distillation(tmp_path):
    save_file(VideoClassifier(MODELS["tiny"], 8).state_dict(), tmp_path / "teacher.safetensors", metadata_of(MODELS["tiny"]))
    with started("cpu") as ranks:
        tuned = finetuning(MODELS["tiny"], ComputeConfig(views_per_forward=2), views=4, classes=8)
        stage = Distilling(as_student(tuned.config, teacher=str(tmp_path / "teacher.safetensors")))
        check_step(ranks, stage, labelled_batch(tuned, ranks.device))


def check_step(ranks, stage, batch):
    """Two forward passes, clipping, the guard with all its rules, the optimizer."""
    config = replace(stage.config, optim=replace(stage.config.optim, spike_factor=5.0), ema=0.9)
    training = Training(type(stage)(config), ranks)
    assert training.passes == 2

    def one(number):
        set_lr(training.optimizer, 1e-3 / number)
        return step(training, number, lambda: batch)

    one(1)  # makes AdamW's moments
    with RefuseWaiting() as mode:
        done = one(2)
    norm, taken = done.norm, done.taken
    # forward pass, backward pass and optimizer were looked at
    assert {"index_select", "addmm", "native_layer_norm_backward", "_fused_adamw_"} <= mode.seen
    assert norm.isfinite() and taken
    with pytest.raises(AssertionError, match="_local_scalar_dense"), RefuseWaiting():
        norm.item()
    with pytest.raises(AssertionError, match="a boolean index"), RefuseWaiting():
        norm[None][norm[None] > 0]
