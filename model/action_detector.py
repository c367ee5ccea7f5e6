"""The action detector: the trunk's tokens, averaged over time, and of each person's box a pooled feature and a linear head
(VideoMAE's action detection; spec 1l). Official parameter names.

B views, T' x h x w tokens, D width, n boxes of all views, C classes.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.config import Implementation, ModelConfig
from model.initialization import HEAD_SCALE, initial_value
from model.layers import DEFAULT
from model.trunk import Trunk

BINS = 7  # rows and columns that a box is divided into
AT_ONCE = 512  # boxes that are pooled together where no gradient is asked for


@dataclass(frozen=True, slots=True)
class Regions:
    """The boxes of B views, as many of each as there are. It is no tensor, so FSDP2 leaves it alone: of a tensor of floats that
    a model is given, bf16 would leave coordinates that are right to a pixel or two."""

    corners: Tensor
    """Float32 (n, 4): x0, y0, x1, y1, pixels of the view. The official ones are of its outermost pixels: a box as wide as the
    view ends at its width less 1."""
    view: Tensor
    """Int64 (n,), to which of the B views a box belongs; ascending."""

    def __len__(self) -> int:
        return len(self.corners)

    def runs(self, most: int) -> "list[Regions]":
        """The same boxes, at most so many at a time; one run of none where there are none."""
        parts = zip(self.corners.split(most), self.view.split(most), strict=True)
        return [replace(self, corners=corners, view=view) for corners, view in parts]

    def to(self, device: torch.device) -> "Regions":
        return replace(self, corners=self.corners.to(device), view=self.view.to(device))


class ActionDetector(Trunk):
    """Views and boxes -> logits of each box, whose classes do not exclude each other. The decoder's sizes in `config` are not
    used.

    From a pre-training checkpoint take the encoder with its last norm; of a fine-tuned one, whose norm is of the mean over all
    tokens, all but that: the norm begins as the identity (official behaviour). It takes views of any size: in training they
    are those of `config`, in a test whole frames.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_classes: int,
        drop_path: float = 0.0,
        how: Implementation = DEFAULT,
        head_scale: float = HEAD_SCALE,
    ) -> None:
        """As `VideoClassifier`."""
        super().__init__(config, drop_path, how, norm=True)
        self.head_scale = head_scale
        self.head = nn.Linear(config.encoder_dim, num_classes)
        self.reset_buffers()

    def initial_value(self, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
        return initial_value(name, shape, seed, self.config.patch_values, self.head_scale)

    def forward(self, views: Tensor, boxes: Regions, keep: Tensor | None = None) -> Tensor:
        """Views (B, T, H, W, 3), boxes and, in training, `keep` (depth, B, 2) bool as for `tokens` -> logits (n, C).

        Memory for the boxes: 49 · 4 · D bytes each, 276 kB of ViT-g's. In training that of all of a batch; without gradients
        that of AT_ONCE, 141 MB of ViT-g's, however many there are, and 4 · (D + C) bytes each.
        """
        x_BDhw = self.feature_map(views, keep)
        if torch.is_grad_enabled():  # a backward pass needs all bins anyway, and would keep what `cat` copies
            x_nD = pooled(x_BDhw, boxes, self.config.patch_size)
        else:
            x_nD = torch.cat([pooled(x_BDhw, run, self.config.patch_size) for run in boxes.runs(AT_ONCE)])
        return self.head(x_nD.to(self.head.weight.dtype))

    def feature_map(self, views: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens after the norm, averaged over time -> (B, D, h, w)."""
        x_BND = self.tokens(views, keep)
        return x_BND.unflatten(1, self.config.grid_of(views.shape)).mean(1).permute(0, 3, 1, 2)


def pooled(x_BDhw: Tensor, boxes: Regions, patch_size: int) -> Tensor:
    """A map of a cell for each patch -> (n, D), at least float32: RoIAlign of 7 x 7 bins, the original one, not moved by half a
    cell, with as many samples of a bin as it has cells, and of the bins the largest value.

    Nothing is rounded to the type of the map: a kernel for bf16 there is none, and the boxes are few. Without boxes there is
    still a backward pass, through nothing.
    """
    from torchvision.ops import roi_align  # half a second, of detection alone

    x_BDhw = x_BDhw if x_BDhw.dtype == torch.float64 else x_BDhw.float()
    rois_n5 = torch.cat([boxes.view[:, None].to(x_BDhw.dtype), boxes.corners.to(x_BDhw.dtype)], dim=1)
    bins = roi_align(x_BDhw.contiguous(), rois_n5, BINS, spatial_scale=1 / patch_size, sampling_ratio=0, aligned=False)
    return bins.amax((2, 3))
