"""What a classifier, fine-tuned before and never trained here, makes of the student's views: logits, for distillation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model.classifier import VideoClassifier
from model.config import Implementation, ModelConfig
from model.flops import block_mac
from model.weights import Weights
from pipeline.storage.manifest import Manifest
from train.checkpoint.descent import fingerprint
from train.checkpoint.source import read_once
from train.classes import head_of
from train.stage import Frozen


class Teacher:
    """Of any layout, width, depth and patches. Its views must be the student's, which it sees as they are."""

    def __init__(self, place: str, config: ModelConfig) -> None:
        """`config` is the student's. Raises ValueError for weights that are no classifier's, or one of other views."""
        try:
            weights = read_once(place)
            weights.check_same()
        except ValueError as error:
            raise ValueError(f"--teacher: {error}") from None
        if weights.kind != "classifier":
            raise ValueError(f"--teacher {place} is {weights.what}; a classifier is needed: weights with a head")
        if weights.sizes["encoder_heads"] is None:
            raise ValueError(
                f"--teacher {place}: nothing tells how many heads its encoder has; `tubecell convert {place} "
                "OUT.safetensors --to tubecell --heads N` makes weights that do"
            )
        self.place, self.sizes = place, weights.config
        theirs, ours = ((sizes.num_frames, sizes.input_size) for sizes in (self.sizes, config))
        if theirs != ours:
            untold = f" ({notes[0]})" if (notes := [note for note in weights.notes if "does not tell" in note]) else ""
            raise ValueError(
                f"--teacher {place} takes views of {theirs[0]} frames of {theirs[1]} x {theirs[1]} pixels{untold}, and the "
                f"student's are {ours[0]} of {ours[1]} x {ours[1]}: both see the same; --model.num-frames {theirs[0]} "
                f"--model.input-size {theirs[1]} gives the student the teacher's"
            )
        self.names, self.num_classes = weights.labels, weights.num_classes  # the student's, after `told_apart`
        self.said = f"{weights.name}, {weights.what}"
        self._normed = {name: f"{name}.weight" in weights.tensors for name in ("norm", "fc_norm")}
        self._weights: Weights | None = weights
        self._rows: Sequence[int] | None = None
        self._model: VideoClassifier | None = None

    def told_apart(self, names: Sequence[str] | None, num_classes: int, manifest: Manifest | None) -> None:
        """Speak of these classes alone, each found by name where both have names. Raises ValueError, with the numbers, if it
        does not know all of them."""
        if self._weights is None:
            return  # was asked before
        head = head_of(self._weights, names, num_classes, manifest)
        if not head.fits:
            why = head.said.removeprefix("head: begins anew: ")
            raise ValueError(
                f"--teacher {self.place} must know the dataset's classes: {why}; give another teacher, or "
                "--classes teacher for a student that has the teacher's"
            )
        self.names, self.num_classes, self._rows = names, num_classes, head.rows

    def frozen(
        self, how: Implementation, checked: Callable[[str], None] | None = None, settle: Callable[[], None] | None = None
    ) -> Frozen:
        """Computed as the student is. `checked` is given the fingerprint of the weights, on rank 0."""
        model = self._model = VideoClassifier(self.sizes, self.num_classes, how=how, **self._normed)
        weights, self._weights = self._weights, None  # not longer than they are needed
        assert weights is not None

        def own() -> dict[str, Tensor]:
            tensors = {name: weights.tensors[name] for name, _ in model.named_parameters()}
            if self._rows is not None:
                tensors |= {name: tensors[name][list(self._rows)] for name in ("head.weight", "head.bias")}
            if checked:
                checked(fingerprint(tensors))
            return tensors

        return Frozen(model, own, compiled=True, settle=settle)

    @torch.no_grad()
    def __call__(self, views_nTHWC: Tensor) -> Tensor:
        """Views as the student sees them -> logits (n, C) float32, without any noise."""
        assert self._model is not None, "the teacher has no weights yet"
        return self._model(views_nTHWC).float()


def forward_gmac(sizes: ModelConfig, num_classes: int) -> float:
    """Products of a classifier's forward pass over a view, in units of 10⁹."""
    N, D = sizes.num_tokens, sizes.encoder_dim
    blocks = sizes.encoder_depth * block_mac(N, D, sizes.encoder_mlp_dim)
    return (blocks + N * sizes.patch_values * D + D * num_classes) / 1e9


def num_parameters(sizes: ModelConfig, num_classes: int) -> int:
    """Of a classifier."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in VideoClassifier(sizes, num_classes).parameters())


def forward_bytes(sizes: ModelConfig, dtype: torch.dtype) -> int:
    """Alive at the widest place of such a pass: e N (2 D + 2 M), the stream, its norm, the MLP before and after GELU; or
    N P (5 + e) of the patches, bytes, floats and the compute type."""
    N, D, M, P = sizes.num_tokens, sizes.encoder_dim, sizes.encoder_mlp_dim, sizes.patch_values
    return max(dtype.itemsize * N * 2 * (D + M), N * P * (5 + dtype.itemsize))
