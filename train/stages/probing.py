"""Probing: what a pre-trained encoder's features tell as they are, to linear heads (VideoMAE V1, Table 10) or to attentive ones
(V-JEPA 2's evaluation)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from model.attentive_heads import MLP_RATIO, AttentiveHeads
from model.config import Implementation
from model.linear_heads import LinearHeads
from model.video_encoder import VideoEncoder
from model.weights import Transfer, transfer
from pipeline.loader import Batch, ClipLoader, LoaderState
from pipeline.sampling import PlainViews, SamplingRecipe
from pipeline.sampling.draws import Draws
from pipeline.sampling.frames import Temporal
from pipeline.sampling.recipe import Crop
from pipeline.settings import flag, setting
from pipeline.storage.manifest import Manifest
from train.accuracy.accuracy import TOP, places
from train.augmentation import flipped, may_flip
from train.checkpoint.probed import BEST_LR, BEST_WEIGHT_DECAY, Head, heads_of
from train.checkpoint.source import read_once
from train.compute.memory import BlockShape, Cost, ParameterSizes
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig, OptimConfig, RunConfig, at_least_1
from train.evaluation import held_out
from train.stage import Evaluation, Evaluator, Frozen
from train.stages.labelled_clips import LabelledClips

FIGURES = "top1", f"top{TOP}", "loss"
Heads = LinearHeads | AttentiveHeads


def sgd(base_lr: float = 0.1) -> OptimConfig:
    """Table 10's: momentum 0.9, no decay, a tenth of the epochs warm-up, a cosine to 0."""
    return OptimConfig(optimizer="sgd", base_lr=base_lr, base_min_lr=0.0, weight_decay=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeConfig(RunConfig):
    """A probe of the encoder of --init."""

    lrs: tuple[float, ...] = ()
    """Peak learning rates for 256 views. Each with each of --weight-decays is a head, and all are trained in one pass over the
    data; by default --optim.base-lr alone, of whose schedule all have the shape."""
    weight_decays: tuple[float, ...] = ()
    """By default --optim.weight-decay alone."""
    probe: Literal["linear", "attentive"] = setting("linear", was="linear")
    """What is given the features: a linear layer, the mean over a view's tokens; or "attentive", all tokens, of which a learned
    query makes one (V-JEPA 2's evaluation: 1 block, or 4)."""
    probe_depth: int = setting(1, was=1)
    """Blocks of an attentive one: all but the last are self-attention over all tokens, each as much work as one of the
    encoder's, for every head."""
    frames: Temporal = "linspace"
    """Of a clip: "linspace", the official window of fine-tuning; "tsn", one of each of T segments of the whole clip
    (Something-Something), or "tsn_video", never a segment's last; "stride", as in pre-training."""
    crop: Crop = "multi_scale"
    """Of a view: "multi_scale" (Table 10), or "random_resized"; "center" or "none", always the same."""
    flip: float = 0.0
    """Probability that a view is mirrored; those of Something-Something never are."""
    expected_classes: int = 174
    """Classes to reckon with in a dry run without --data."""

    views: PlainViews = field(default_factory=lambda: PlainViews(views_per_step=1024, views_per_clip=1))
    optim: OptimConfig = setting(default_factory=sgd, may_change=True)

    def __post_init__(self) -> None:
        super(ProbeConfig, self).__post_init__()  # slots: the class that a bare super() names is another
        if not (self.model.positions_size or self.model.positions_frames):  # as in fine-tuning
            sizes = {"positions_size": self.model.input_size, "positions_frames": self.model.num_frames}
            object.__setattr__(self, "model", replace(self.model, **sizes))
        at_least_1(self, "expected_classes")
        at_least_1(self, "probe_depth")
        if self.probe == "linear" and self.probe_depth > 1:
            raise ValueError(f"--probe-depth {self.probe_depth}: a linear probe has no blocks; give --probe attentive")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"--flip {self.flip} must be 0 to 1")
        if self.freeze:
            raise ValueError(f"--freeze {self.freeze}: a probe trains no block at all; leave it")
        heads, scale = self.heads, self.views.views_per_step / 256
        for name, number in Counter(map(str, heads)).items():
            if number > 1:
                raise ValueError(f"--lrs and --weight-decays: {name} is there {number} times; give each value once")
        for head in heads:
            lr, decay = head.lr, head.weight_decay
            if not (0 < lr < math.inf and 0 <= decay < math.inf):
                raise ValueError(f"--lrs {lr:g} must be over 0, --weight-decays {decay:g} at least 0, and both finite")
            if self.optim.optimizer == "sgd" and lr * scale * decay >= 1:
                raise ValueError(
                    f"--lrs {lr:g} for 256 views, here {lr * scale:g}, times --weight-decays {decay:g} must be less than 1, or "
                    "a step takes away more than there is"
                )
        for name in ("clip_grad", "spike_factor"):
            if len(heads) > 1 and getattr(self.optim, name) is not None:
                raise ValueError(
                    f"{flag(f'optim.{name}')} is of the norm over all {len(heads)} heads, of which one would hold back the "
                    "others; leave it, or train one head"
                )

    @property
    def sampling(self) -> SamplingRecipe:
        """Without masks. Raises ValueError if such views cannot be taken."""
        return self.joined(masks=None, temporal=self.frames, crop=self.crop)

    @property
    def heads(self) -> list[Head]:
        return heads_of(self.lrs, self.weight_decays, self.optim.base_lr, self.optim.weight_decay)


class Probing:
    """The stage. A view's features are those of `VideoEncoder`. Linear heads have the mean over all its tokens after the
    encoder's last norm, or, of a fine-tuned encoder, whose norm comes after the mean, that; attentive ones all its tokens,
    after the norm if they have one. All heads are given the same ones, computed once.

    Two cores, ViT-B, 4 views of 16 x 224², fp32: the encoder takes 8.2 s, a step of twelve linear heads 11 ms, of one 4 ms.
    """

    name: ClassVar[str] = "probe"

    def __init__(self, config: ProbeConfig) -> None:
        """Raises ValueError for weights that are not the encoder's."""
        self.config, self._clips = config, LabelledClips(config, config.expected_classes)
        self._norms = {"norm": True, "fc_norm": False}
        self._start = self._read() if config.init is not None else None

    def loader(self, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None) -> ClipLoader:
        """Raises ValueError, too, for a dataset without classes, and without an encoder."""
        if self.config.init is None:
            raise ValueError("--init WEIGHTS is needed: the encoder that is probed (a run, or a file of any layout)")
        beforehand = Probing(replace(self.config, data=None, init=None))
        return self._clips.loader(ranks, state, clips_per_batch, label_map, beforehand)

    def model(self, how: Implementation) -> Heads:
        config, sizes, number = self.config, self.config.model, (self._clips.num_classes, len(self.config.heads))
        if config.probe == "linear":
            return LinearHeads(sizes.encoder_dim, *number)
        return AttentiveHeads(sizes.encoder_dim, sizes.encoder_heads, config.probe_depth, *number)

    def frozen(self) -> Mapping[str, Frozen]:
        start = self._taken()
        self._encoder = self._bare()
        return {"encoder": Frozen(self._encoder, lambda: start.taken)}

    def start_from(self, model: Heads) -> Transfer | None:
        """The heads begin with initial values; what the encoder has is told."""
        if self.config.init is None:
            return None
        start = self._taken()
        return replace(start, taken={}, notes=[f"the encoder, {len(start.taken)} tensors, is run and stays as it is"])

    def _taken(self) -> Transfer:
        """Read again where it is asked for again: nobody keeps it longer than needed."""
        start, self._start = self._start or self._read(), None
        return start

    def _read(self) -> Transfer:
        """What the encoder takes of --init. Raises ValueError for weights that cannot be read, or are not such an encoder's."""
        assert self.config.init is not None
        try:
            weights = read_once(self.config.init)
            weights.check_same()
            self._norms = {name: f"{name}.weight" in weights.encoder() for name in self._norms}
            if self.config.probe == "attentive":
                self._norms["fc_norm"] = False  # of the mean
            elif not any(self._norms.values()):
                raise ValueError(f"{weights.place} has no norm after its last block, which a probe's features come out of")
            with torch.device("meta"):
                shapes = {name: tensor.shape for name, tensor in self._bare().named_parameters()}
            return transfer(weights, shapes)
        except ValueError as error:
            raise ValueError(f"--init: {error}") from None

    def _bare(self) -> VideoEncoder:
        encoder = VideoEncoder(self.config.model, **self._norms)
        encoder.global_pool = "avg" if self.config.probe == "linear" else ""
        return encoder

    def groups(self, model: Heads) -> list[dict[str, Any]]:
        """Of each head. Biases of linear ones do not decay; of attentive ones everything does, as there."""
        groups: list[dict[str, Any]] = []
        for head, layers in zip(self.config.heads, model.heads, strict=True):
            scale = head.lr / self.config.optim.base_lr
            if self.config.probe == "attentive":
                groups.append({"params": [*layers.parameters()], "weight_decay": head.weight_decay, "lr_scale": scale})
                continue
            groups.append({"params": [layers.weight], "weight_decay": head.weight_decay, "lr_scale": scale})
            groups.append({"params": [layers.bias], "weight_decay": 0.0, "lr_scale": scale})
        return groups

    def loss(self, model: Heads, batch: Batch, draws: Draws | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The sum of the heads' losses, so that each has the gradient that it has alone; and of each head, by its name if there
        are several, its loss and how often its first guess is right; in an evaluation also one of its first five."""
        views_nTHWC, repeats = batch.views, len(batch.views) // len(batch.rows)
        if draws is not None and self.config.flip:
            views_nTHWC = flipped(views_nTHWC, draws.flips(self.config.flip) & np.repeat(may_flip(batch), repeats))
        with torch.no_grad():
            features = self._encoder(views_nTHWC)  # (n, D), or tokens (n, N, D)
        heads, labels_n = len(self.config.heads), batch.labels.repeat_interleave(repeats)
        logits_nGC = model(features.float()).unflatten(1, (heads, -1))
        each_nG = labels_n[:, None].expand(-1, heads)
        losses_G = cross_entropy(logits_nGC.transpose(1, 2), each_nG, ignore_index=-1, reduction="none").mean(0)
        found = {"loss": losses_G.detach(), "top1": (logits_nGC.argmax(2) == each_nG).float().mean(0)}
        if draws is None and logits_nGC.shape[2] > TOP:
            place_nG = places(logits_nGC.flatten(0, 1), each_nG.flatten()).view_as(each_nG)
            found[f"top{TOP}"] = (place_nG < TOP).float().mean(0)
        if heads == 1:
            return losses_G.sum(), {name: of_head[0] for name, of_head in found.items() if name != "loss"}
        names = [str(head) for head in self.config.heads]
        return losses_G.sum(), {
            f"{name}_{head}": one for name, of_head in found.items() for head, one in zip(names, of_head.unbind(), strict=True)
        }

    def cost(self, compute: ComputeConfig) -> Cost:
        """Nothing is kept of the encoder. At its widest place there are e N (2 D + 2 M) of a view: the stream, its norm, the
        MLP before and after GELU; or N P (5 + e), of the patches: bytes, floats and the compute type. Of attentive heads all
        blocks but the last keep what one of the encoder's does, each; the last one, of G heads, N (D + 2 G H)."""
        config, dtype, heads = self.config.model, PRECISIONS[compute.precision].encoder, len(self.config.heads)
        N, D, M, P = config.num_tokens, config.encoder_dim, config.encoder_mlp_dim, config.patch_values
        block = BlockShape(N, N, D, M, config.encoder_heads, dtype)
        with torch.device("meta"):
            sizes = ParameterSizes.of(self.model(Implementation()))
            frozen = sum(parameter.numel() for parameter in self._bare().parameters())
        gmac = (config.encoder_depth * block.mac + N * P * D) / 1e9
        logits = 4 * heads * self._clips.num_classes
        own, kept, widest = D * logits // 4, 4 * D + 2 * logits, 0
        if self.config.probe == "attentive":
            H, before = config.encoder_heads, heads * (self.config.probe_depth - 1)
            blocks = BlockShape(N, N, D, MLP_RATIO * D, H, dtype)
            own += before * blocks.mac + heads * (2 * H * N * D + (1 + 2 * MLP_RATIO) * D * D)
            copies = heads if before else 1
            kept += before * blocks.kept_bytes + 4 * copies * N * D + heads * 4 * (2 * H * N + H * D + (3 + 2 * MLP_RATIO) * D)
            widest = heads * max(4 * 2 * H * N, blocks.backward_bytes if before else 0)
        return Cost(
            blocks=((),),
            sizes=sizes,
            gmac=own / 1e9,
            outside=kept,
            loss=max(widest, dtype.itemsize * N * 2 * (D + M), N * P * (5 + dtype.itemsize)),
            inputs=config.num_frames * config.input_size**2 * 3,
            frozen_gmac=gmac,
            frozen_bytes=dtype.itemsize * frozen,
            notes={
                **self._clips.said,
                "heads": ", ".join(map(str, self.config.heads)),
                "encoder": f"{frozen:,} parameters, frozen; forward {gmac:.2f} GMAC a view of {N} tokens",
            },
        )

    def evaluators(self, model: Heads, ranks: Ranks, run: Path, manifest: Manifest) -> Sequence[Evaluator]:
        """On clips with a label; the weights with the best top-1 accuracy are kept."""
        if not self.config.evaluate_every:
            return []
        heads = self.config.heads
        every = held_out(self, ranks, run, manifest, self._clips.held_out(manifest), best="held_out_top1")
        return every if len(heads) == 1 else [replace(each, call=BestHead(each, heads)) for each in every]


class BestHead:
    """An evaluator: that of every head, and which is best; of equal ones that with the lesser loss."""

    def __init__(self, every: Evaluator, heads: Sequence[Head]) -> None:
        self._every, self._heads = every, heads

    def __call__(self, model: Heads, step: int) -> Evaluation:
        """The best head's figures have the names that a single one's have."""
        found = self._every.call(model, step)
        names = [name for name in FIGURES if f"held_out_{name}_{self._heads[0]}" in found.figures]
        figures = {head: {name: found.figures[f"held_out_{name}_{head}"] for name in names} for head in self._heads}
        best = max(self._heads, key=lambda head: (figures[head]["top1"], -figures[head]["loss"]))
        told = {f"held_out_{name}": value for name, value in figures[best].items()}
        told |= {BEST_LR: best.lr, BEST_WEIGHT_DECAY: best.weight_decay}
        return replace(found, figures=told | {f"held_out_top1_{head}": of["top1"] for head, of in figures.items()})
