"""In which type what is computed.

Whatever the preset, master weights, AdamW's moments, the reduction of gradients, targets and loss are float32. The type is that
of weights and activations in the forward and backward pass: FSDP2 hands out a copy of the weights in it. That differs from
autocast (the official code's way) in the norms, which read and write the compute type here and are float32 only inside.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """One preset."""

    encoder: torch.dtype
    """Of the patch embedding, the encoder's blocks and its last norm."""
    decoder: torch.dtype
    """Of what follows: the projection, the mask token, the decoder and its head. The latent is cast on the way."""
    heads: torch.dtype = torch.float32
    """Of a probe's heads: they are so small that a lower precision would gain nothing."""
    loss_scaling: bool = False
    """Whether small gradients would be lost: float16 ends at 6e-8. The loss is then multiplied by a `LossScale`."""
    tf32: bool = False
    """Whether products of float32 matrices may round their factors to 10 bits of mantissa, on GPUs that gain by it. A CPU
    has no such unit: there it is float32 to the last bit."""

    def of(self, part: str) -> torch.dtype:
        """The type of a model's part, by its name among these fields."""
        dtype = getattr(self, part)
        assert isinstance(dtype, torch.dtype), part
        return dtype


PRECISIONS: dict[str, Precision] = {
    "bf16": Precision(encoder=torch.bfloat16, decoder=torch.bfloat16),
    "fp32": Precision(encoder=torch.float32, decoder=torch.float32),
    "tf32": Precision(encoder=torch.float32, decoder=torch.float32, tf32=True),
    # official code: the whole forward pass under float16 autocast, with a gradient scaler
    "fp16": Precision(encoder=torch.float16, decoder=torch.float16, loss_scaling=True),
    # VideoMAE V2, appendix D.1: encoder in FP16 mixed precision, decoder in FP32
    "paper": Precision(encoder=torch.float16, decoder=torch.float32, loss_scaling=True),
}
