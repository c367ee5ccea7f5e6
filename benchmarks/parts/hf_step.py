"""The peers of `model_step.py` and `finetune_step.py`: a step of HF transformers' VideoMAE, as a user has it today.

Encoder-only masking (it has no other), SDPA, fused AdamW and foreach clipping. bf16 is autocast over float32 weights, as the
library's own Trainer does it. Its input is given ready: float32 clips, normalised, in memory. Ours starts from uint8.
"""

import importlib.util
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.parts.crew import Crew
from benchmarks.parts.step_work import CLASSES, CLIP_GRAD, random_batch
from benchmarks.parts.stopwatch import Work
from model.config import ModelConfig
from model.pixels import normalise
from pipeline.loader import Batch


def missing_transformers() -> str | None:
    """What to install, or None where transformers is there."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed; `pip install transformers` adds the comparison"
    return None


class HfWork(Work):
    """A training step of a model of theirs, over and over."""

    def __init__(self, model: nn.Module, views: int, precision: str, device: torch.device, betas: tuple[float, float]) -> None:
        self.model = model.to(device).train()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, betas=betas, weight_decay=0.05, fused=True)
        self.views, self.device, self.autocast = views, device, precision == "bf16"
        for _ in range(2):
            self.work()

    def loss(self) -> Tensor:
        raise NotImplementedError

    def work(self) -> int:
        """A step, -> its views."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP_GRAD, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.views


class HfPretraining(HfWork):
    """`VideoMAEForPreTraining` of the same sizes, on the same views and encoder masks."""

    def __init__(self, config: ModelConfig, views: int, precision: str, device: torch.device) -> None:
        from transformers import VideoMAEForPreTraining  # takes seconds

        batch = random_batch(config, views, 0.0, device)
        assert batch.visible is not None
        self.pixel_values = pixels_of(batch)
        self.hidden = torch.ones(views, config.num_tokens, dtype=torch.bool, device=device).scatter_(1, batch.visible, False)
        super().__init__(hf_model(VideoMAEForPreTraining, config), views, precision, device, betas=(0.9, 0.95))

    def loss(self) -> Tensor:
        return self.model(self.pixel_values, bool_masked_pos=self.hidden).loss


class HfClassification(HfWork):
    """`VideoMAEForVideoClassification` of the same sizes, on the same views and labels."""

    def __init__(self, config: ModelConfig, views: int, precision: str, device: torch.device) -> None:
        from transformers import VideoMAEForVideoClassification

        self.pixel_values = pixels_of(random_batch(config, views, 0.0, device))
        self.labels = torch.arange(views, device=device) % CLASSES
        model = hf_model(VideoMAEForVideoClassification, config, use_mean_pooling=True, num_labels=CLASSES)
        super().__init__(model, views, precision, device, betas=(0.9, 0.999))

    def loss(self) -> Tensor:
        return self.model(self.pixel_values, labels=self.labels).loss


def pixels_of(batch: Batch) -> Tensor:
    """(B, T, 3, H, W), as they take them."""
    clip = normalise(batch.views.flatten(-2)).view(batch.views.shape)
    return clip.permute(0, 1, 4, 2, 3).contiguous()


Peer = Callable[[ModelConfig, int, str, torch.device], HfWork]


class HfProcess(Crew, Work):
    """`HfWork` on a CPU in a process of its own, as a user has it: what our trainer does to its process is not done to it."""

    def __init__(self, kind: Peer, config: ModelConfig, views: int, precision: str) -> None:
        super().__init__(1, _serve, kind, config, views, precision, torch.get_num_threads())
        self.answers()

    def work(self) -> int:
        """A step, -> its views."""
        self.tell_all(None)
        return int(self.answers()[0])


def _serve(connection: Connection, kind: Peer, config: ModelConfig, views: int, precision: str, threads: int) -> None:
    torch.set_num_threads(threads)
    work = kind(config, views, precision, torch.device("cpu"))
    connection.send(None)
    while True:
        connection.recv()
        connection.send(work.work())


def hf_model(kind: Any, config: ModelConfig, use_mean_pooling: bool = False, **more: int) -> Any:
    """One of their classes with our sizes. Published pre-training checkpoints have no mean pooling: the encoder ends with its
    norm."""
    from transformers import VideoMAEConfig

    return kind._from_config(
        VideoMAEConfig(
            image_size=config.input_size,
            patch_size=config.patch_size,
            num_frames=config.num_frames,
            tubelet_size=config.tubelet_size,
            hidden_size=config.encoder_dim,
            num_hidden_layers=config.encoder_depth,
            num_attention_heads=config.encoder_heads,
            intermediate_size=config.encoder_mlp_dim,
            decoder_hidden_size=config.decoder_dim,
            decoder_num_hidden_layers=config.decoder_depth,
            decoder_num_attention_heads=config.decoder_heads,
            decoder_intermediate_size=config.decoder_mlp_dim,
            use_mean_pooling=use_mean_pooling,
            **more,
        ),
        attn_implementation="sdpa",
    )
