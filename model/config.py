"""The sizes of a model, and the named ones of the paper (VideoMAE V2 Table 7; widths as in the released code)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

TokenMethod = Literal["auto", "reference", "compiled", "triton"]
AttentionKernel = Literal["auto", "flash", "flash3", "cudnn"]
Grid = tuple[int, int, int]  # T', rows, columns of tokens
DIVISORS = {"input_size": "patch_size", "num_frames": "tubelet_size"}
DIVISORS |= {"positions_size": "patch_size", "positions_frames": "tubelet_size"}
DIVISORS |= {"encoder_dim": "encoder_heads", "decoder_dim": "decoder_heads"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of the encoder, of the pre-training decoder and of the clip they are built for."""

    input_size: int = 224
    """Height and width of a view, in pixels; a multiple of the patch size."""
    num_frames: int = 16
    """Frames of a view; a multiple of the tubelet size."""
    patch_size: int = 16
    """Height and width of a patch, in pixels."""
    tubelet_size: int = 2
    """Frames that a patch spans."""
    encoder_dim: int = 768
    """Width D of the encoder; a multiple of its heads."""
    encoder_depth: int = 12
    """Blocks of the encoder."""
    encoder_heads: int = 12
    """Attention heads of the encoder."""
    decoder_dim: int = 384
    """Width of the decoder; a multiple of its heads."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 6
    """Attention heads of the decoder."""
    mlp_ratio: float = 4.0
    """Hidden width of every MLP by its block's width, the product truncated. ViT-g: 48/11, so 6144 and 2234."""
    decoder_mlp_ratio: float | None = None
    """The decoder's, where it is another."""
    layer_norm_eps: float = 1e-6
    """Added to every layer norm's variance. Official: 1e-6; Hugging Face's VideoMAE: 1e-12."""
    last_norm_eps: float | None = None
    """Of the decoder's last norm and of the norm before a classifier's head, where it is another. Hugging Face's: 1e-5."""
    positions_size: int | None = None
    """Pixels of the views that the position table is built for, interpolated to the model's own grid. None: its own grid,
    which is the official code's re-indexing."""
    positions_frames: int | None = None
    """Frames of those views; None: the model's own."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None and value <= 0:
                raise ValueError(f"{field.name} {value} must be greater than 0")
        for whole, part in DIVISORS.items():
            value, divisor = getattr(self, whole), getattr(self, part)
            if value is not None and value % divisor:
                below = value // divisor * divisor
                nearest = " or ".join(str(n) for n in (below, below + divisor) if n)
                raise ValueError(
                    f"{whole} {value} is no multiple of {part} {divisor}; set {whole} to {nearest}, or change {part}"
                )

    def check_views(self, shape: Sequence[int]) -> None:
        """Refuse a batch whose shape is not (B, T, H, W, 3) of this model: its tokens would get other tokens' positions."""
        if tuple(shape[1:]) != (self.num_frames, self.input_size, self.input_size, 3):
            raise ValueError(
                f"views of shape {tuple(shape)} do not fit the model, which takes (B, {self.num_frames}, {self.input_size}, "
                f"{self.input_size}, 3); make the views so, or build the model with their num_frames and input_size"
            )

    def grid_of(self, shape: Sequence[int], said: str | None = None) -> Grid:
        """That of views (B, T, H, W, 3), whatever their size and length. Raises ValueError for such as do not divide into
        patches, which says what they must be, or what is `said` of that."""
        divisors = self.tubelet_size, self.patch_size, self.patch_size
        fits = len(shape) == 5 and shape[-1] == 3
        if not fits or any(size == 0 or size % divisor for size, divisor in zip(shape[1:4], divisors, strict=True)):
            said = said or f"views of shape {tuple(shape)} must be (B, T, H, W, 3)"
            raise ValueError(
                f"{said}, T a multiple of the tubelet size {self.tubelet_size}, H and W multiples of the patch size "
                f"{self.patch_size}"
            )
        T, rows, columns = (size // divisor for size, divisor in zip(shape[1:4], divisors, strict=True))
        return T, rows, columns

    @property
    def grid(self) -> Grid:
        """(T', rows, columns) of tokens; token = (t * rows + row) * columns + column."""
        side = self.input_size // self.patch_size
        return self.num_frames // self.tubelet_size, side, side

    @property
    def positions_grid(self) -> Grid:
        """That whose flattened index the sinusoids are of: the pre-training model's, which others are interpolated from."""
        side = (self.positions_size or self.input_size) // self.patch_size
        return (self.positions_frames or self.num_frames) // self.tubelet_size, side, side

    @property
    def num_tokens(self) -> int:
        """N, tokens of a view: 1568 for 16 x 224² with patch 16, 2048 with patch 14."""
        time, rows, columns = self.grid
        return time * rows * columns

    @property
    def patch_values(self) -> int:
        """P, values of a patch: 1536 for patch 16, 1176 for patch 14."""
        return self.tubelet_size * self.patch_size**2 * 3

    @property
    def encoder_mlp_dim(self) -> int:
        """Hidden width of the encoder's MLPs."""
        return int(self.encoder_dim * self.mlp_ratio)

    @property
    def decoder_mlp_dim(self) -> int:
        """Hidden width of the decoder's MLPs: 2234 for ViT-g, as in its checkpoints, where Table 7 prints 2048."""
        return int(self.decoder_dim * (self.decoder_mlp_ratio or self.mlp_ratio))

    @property
    def final_eps(self) -> float:
        """Of the decoder's last norm and of the norm before a classifier's head."""
        return self.last_norm_eps or self.layer_norm_eps


@dataclass(frozen=True, kw_only=True, slots=True)
class Implementation:
    """How a model is computed. None of it changes a parameter, or a result beyond rounding."""

    tokens: TokenMethod = "auto"
    """What makes patches and targets of uint8 views; see `tubecell.model.patches.token_function`."""
    attention: AttentionKernel = "flash"
    """Whose kernels attention takes on CUDA in bf16 and fp16; see `tubecell.model.layers.sdpa_backends`. "auto" is "flash", but
    on a CPU in bf16 up to 256 tokens plain products; see `train/compute/on_cpu.py`."""
    align_mlp: bool = False
    """Compute MLPs at the next multiple of 64 of their hidden width: 2240 for the 2234 of ViT-g's decoder."""
    compile_loss: bool = False
    """Compute the error of the predictions in two kernels; see `tubecell.model.videomae.loss_function`."""


def _model(encoder: tuple[int, int, int], decoder: tuple[int, int, int], **others: Any) -> ModelConfig:
    """Of encoder and decoder: width, blocks, heads."""
    names = [f"{stack}_{size}" for stack in ("encoder", "decoder") for size in ("dim", "depth", "heads")]
    return ModelConfig(**dict(zip(names, (*encoder, *decoder), strict=True)), **others)


MODELS: dict[str, ModelConfig] = {
    # train on two CPU cores: to see that it learns, and for tests
    "micro": _model((64, 3, 4), (64, 2, 2), input_size=32, num_frames=8, patch_size=8),
    "tiny": _model((128, 4, 4), (64, 2, 2), input_size=64, num_frames=8, patch_size=8),
    "vit-s": _model((384, 12, 6), (192, 4, 3)),
    "vit-b": _model((768, 12, 12), (384, 4, 6)),
    "vit-l": _model((1024, 24, 16), (512, 4, 8)),
    "vit-h": _model((1280, 32, 16), (512, 4, 8)),
    "vit-g": _model((1408, 40, 16), (512, 4, 8), patch_size=14, mlp_ratio=48 / 11),
}
