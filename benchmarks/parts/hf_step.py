"""The peer of `model_step.py`: a pre-training step of HF transformers' VideoMAE, as a user has it today.

Encoder-only masking (it has no other), SDPA, fused AdamW and foreach clipping. bf16 is autocast over float32 weights, as the
library's own Trainer does it. Its input is given ready: float32 clips, normalised, in memory. Ours starts from uint8.
"""

import importlib.util
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import nn

from benchmarks.parts.crew import Crew
from benchmarks.parts.step_work import CLIP_GRAD, random_batch
from benchmarks.parts.stopwatch import Work
from model.config import ModelConfig
from model.pixels import normalise


def missing_transformers() -> str | None:
    """What to install, or None where transformers is there."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed; `pip install transformers` adds the comparison"
    return None


class HfWork(Work):
    """`VideoMAEForPreTraining` of the same sizes, on the same views and encoder masks."""

    def __init__(self, config: ModelConfig, views: int, precision: str, device: torch.device) -> None:
        self.model = hf_model(config).to(device).train()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
        self.views, self.device, self.autocast = views, device, precision == "bf16"
        batch = random_batch(config, views, 0.0, device)
        assert batch.visible is not None
        clip = normalise(batch.views.flatten(-2)).view(batch.views.shape)
        self.pixel_values = clip.permute(0, 1, 4, 2, 3).contiguous()  # (B, T, 3, H, W)
        self.hidden = torch.ones(views, config.num_tokens, dtype=torch.bool, device=device).scatter_(1, batch.visible, False)
        for _ in range(2):
            self.work()

    def work(self) -> int:
        """A step, -> its views."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.model(self.pixel_values, bool_masked_pos=self.hidden).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP_GRAD, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self.views


class HfProcess(Crew, Work):
    """`HfWork` on a CPU in a process of its own, as a user has it: what our trainer does to its process is not done to it."""

    def __init__(self, config: ModelConfig, views: int, precision: str) -> None:
        super().__init__(1, _serve, config, views, precision, torch.get_num_threads())
        self.answers()

    def work(self) -> int:
        """A step, -> its views."""
        self.tell_all(None)
        return int(self.answers()[0])


def _serve(connection: Connection, config: ModelConfig, views: int, precision: str, threads: int) -> None:
    torch.set_num_threads(threads)
    work = HfWork(config, views, precision, torch.device("cpu"))
    connection.send(None)
    while True:
        connection.recv()
        connection.send(work.work())


def hf_model(config: ModelConfig) -> Any:
    """The peer's model with our sizes."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining  # takes seconds

    return VideoMAEForPreTraining._from_config(
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
            use_mean_pooling=False,  # as in the published pre-training checkpoints: the encoder ends with its norm
        ),
        attn_implementation="sdpa",
    )
