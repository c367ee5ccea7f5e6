"""The contrastive loss: what it is on one rank, and that two ranks give the same loss and the same gradients."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from model.two_towers import COLDEST, Ceiling
from tests.train.trainers import start_server
from train.retrieval.contrastive import contrastive_loss

CLIPS, WIDTH, RANKS = 8, 5, 2


def inputs() -> dict[str, Tensor]:
    """Two texts have the same words, a clip comes twice, and another has no text."""
    random = torch.Generator().manual_seed(0)
    video, text = (torch.randn(CLIPS, WIDTH, generator=random) for _ in range(2))
    words = torch.tensor([0, 1, 2, 1, 4, 5, 6, 7])
    clips = torch.tensor([0, 1, 2, 3, 4, 0, 6, 7])
    return {"video": video, "text": text, "clips": clips, "words": words, "there": torch.arange(CLIPS) != 6}


def computed(given: dict[str, Tensor], share: slice) -> dict[str, Tensor]:
    """Loss and gradients of a rank's clips."""
    video, text = (given[name][share].clone().requires_grad_() for name in ("video", "text"))
    scale = torch.tensor(7.0, requires_grad=True)
    others = (given[name][share] for name in ("clips", "words", "there"))
    loss, scalars = contrastive_loss(video, text, scale, *others)
    loss.backward()
    assert video.grad is not None and text.grad is not None and scale.grad is not None
    return {"loss": loss.detach(), "video": video.grad, "text": text.grad, "scale": scale.grad, **scalars}


def be_rank(rank: int, port: int, folder: Path) -> None:
    """In a process of its own; like the loader's, a rank's clips are every other one."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=RANKS)
    torch.save(computed(inputs(), slice(rank, None, RANKS)), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_give_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [start_server().Process(target=be_rank, args=(rank, port, tmp_path)) for rank in range(RANKS)]
    for process in processes:
        process.start()
    one = computed(inputs(), slice(None))
    for process in processes:
        process.join(200)
        assert process.exitcode == 0
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for name in ("loss", "scale", "text_to_video", "video_to_text", "temperature"):
        torch.testing.assert_close(sum(each[name] for each in ranks) / RANKS, one[name])
    for name in ("video", "text"):  # FSDP takes the mean over the ranks
        whole = torch.stack([each[name] for each in ranks], 1).flatten(0, 1) / RANKS
        torch.testing.assert_close(whole, one[name])
    assert one["loss"] > 0 and one["video"].norm() > 0
    assert not one["video"][6].any() and not one["text"][6].any()


def test_without_doubles_it_is_the_symmetric_cross_entropy() -> None:
    given = inputs()
    each = torch.arange(CLIPS)
    scale = torch.tensor(3.0)
    loss, scalars = contrastive_loss(given["video"], given["text"], scale, each, each, each >= 0)
    logits = 3 * normalize(given["video"], dim=1) @ normalize(given["text"], dim=1).T
    torch.testing.assert_close(loss, (cross_entropy(logits, each) + cross_entropy(logits.T, each)) / 2)
    assert scalars["video_to_text"] == pytest.approx(float((logits.argmax(1) == each).float().mean()))
    assert scalars["temperature"] == pytest.approx(1 / 3)
    alike = torch.ones(CLIPS, WIDTH)
    _, scalars = contrastive_loss(alike, alike, scale, each, each, each >= 0)
    assert scalars["text_to_video"] == scalars["video_to_text"] == 0  # of equal ones none is the most alike


def test_what_has_the_same_words_is_no_negative() -> None:
    given, each = inputs(), torch.arange(CLIPS)
    words = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7])
    loss, _ = contrastive_loss(given["video"], given["text"], torch.tensor(3.0), each, words, each >= 0)
    logits = 3 * normalize(given["video"], dim=1) @ normalize(given["text"], dim=1).T
    logits[0, 3] = logits[3, 0] = -torch.inf
    torch.testing.assert_close(loss, (cross_entropy(logits, each) + cross_entropy(logits.T, each)) / 2)


@pytest.mark.parametrize(("over", "gradient", "passed"), [(-1.0, -1.0, -1.0), (1.0, -1.0, 0.0), (1.0, 1.0, 1.0)])
def test_the_temperature_is_held_and_comes_back(over: float, gradient: float, passed: float) -> None:
    value = torch.tensor([COLDEST + over], requires_grad=True)
    held = Ceiling.apply(value)
    assert held.item() == pytest.approx(COLDEST + min(over, 0))
    held.backward(torch.tensor([gradient]))
    assert value.grad is not None and value.grad.item() == passed
