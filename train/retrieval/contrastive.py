"""The loss that draws a video and its text together, and apart from those of all other clips of the step, on all ranks (CLIP).

B clips of a rank, G of all ranks, E width of the space.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import normalize


def contrastive_loss(
    video_BE: Tensor, text_BE: Tensor, scale: Tensor, clips_B: Tensor, words_B: Tensor, there_B: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Features of any length, and what similarities are multiplied by -> the mean of both directions' cross entropy, (),
    float32, and named scalars. Its mean over the ranks, and the gradient of that, are those of one rank with all clips.

    `clips_B` int64 tell clips apart and `words_B` texts: what is of the same clip or has the same words is nobody's negative.
    Clips that are not `there_B`, bool, count nowhere. All ranks call it, with equally many clips.
    """
    video_BE, text_BE = normalize(video_BE.float(), dim=1), normalize(text_BE.float(), dim=1)
    video_GE, text_GE = gathered(video_BE), gathered(text_BE)
    clips_G, words_G, there_G = (gathered_plainly(each) for each in (clips_B, words_B, there_B))
    B, first = len(video_BE), rank() * len(video_BE)
    own_B = torch.arange(first, first + B, device=video_BE.device)
    alike_BG = (clips_B[:, None] == clips_G) | (words_B[:, None] == words_G)
    alike_BG[torch.arange(B, device=own_B.device), own_B] = False
    left_BG = alike_BG | ~there_G
    left_BG[torch.arange(B, device=own_B.device), own_B] = False
    number = there_G.sum().clamp(min=1) / (len(there_G) / B)  # of a rank, in the mean
    losses, right = [], []
    for queries_BE, answers_GE in ((video_BE, text_GE), (text_BE, video_GE)):
        logits_BG = (scale * queries_BE @ answers_GE.T).masked_fill(left_BG, float("-inf"))
        own = logits_BG.gather(1, own_B[:, None])
        losses.append((logits_BG.logsumexp(1) - own.squeeze(1)).where(there_B, 0.0).sum() / number)
        right.append(((logits_BG >= own).sum(1) == 1).where(there_B, False).sum() / number)
    video_to_text, text_to_video = right
    scalars = {"text_to_video": text_to_video, "video_to_text": video_to_text, "temperature": 1 / scale.detach()}
    return (losses[0] + losses[1]) / 2, scalars


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def others() -> bool:
    """Whether there are any."""
    return dist.is_initialized() and dist.get_world_size() > 1


def gathered(x_BE: Tensor) -> Tensor:
    """Those of all ranks, in rank order, and their gradient back: the sum of what all ranks make of them."""
    return _Gathered.apply(x_BE) if others() else x_BE


def gathered_plainly(x_B: Tensor) -> Tensor:
    """Without gradients; of integers or bool."""
    if not others():
        return x_B
    values = torch.empty(dist.get_world_size() * len(x_B), *x_B.shape[1:], dtype=torch.int64, device=x_B.device)
    dist.all_gather_into_tensor(values, x_B.to(torch.int64).contiguous())
    return values.to(x_B.dtype)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x_BE: Tensor) -> Tensor:
        context.size = len(x_BE)
        x_GE = x_BE.new_empty(dist.get_world_size() * len(x_BE), *x_BE.shape[1:])
        dist.all_gather_into_tensor(x_GE, x_BE.contiguous())
        return x_GE

    @staticmethod
    def backward(context: Any, gradient_GE: Tensor) -> Tensor:
        gradient_GE = gradient_GE.contiguous()
        dist.all_reduce(gradient_GE)  # gloo scatters no sums
        return gradient_GE[rank() * context.size :][: context.size]
