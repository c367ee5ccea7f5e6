"""Detection: who does what at a key frame, on a pre-trained or fine-tuned encoder (VideoMAE V2, section 4.3 and Table 12, after
the action detection of VideoMAE).

People are not looked for: their boxes are annotated in training, and in a test those that a detector of people has found.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from model.action_detector import BINS, ActionDetector
from model.config import Implementation
from model.initialization import HEAD_SCALE
from model.trainable import Trainable
from model.weights import DETECT, Transfer, Weights
from pipeline.labels import read_label_map
from pipeline.loader import Batch, ClipLoader, LoaderState
from pipeline.sampling import PlainViews, SamplingRecipe
from pipeline.sampling.crops import SHORT_SIDES
from pipeline.sampling.draws import Draws
from pipeline.sampling.view_boxes import MOST, SURE, WHOLE, training_boxes
from pipeline.settings import setting
from pipeline.storage.key_frames import KeyFrames, Kind
from pipeline.storage.manifest import Manifest
from train.augmentation import flipped, on_device
from train.classes import Head, head_of
from train.compute.memory import STATISTIC, BlockShape, Cost, ParameterSizes
from train.compute.optimizer import parameter_groups
from train.compute.parallel import Ranks
from train.compute.precision import PRECISIONS
from train.config import ComputeConfig, OptimConfig, RunConfig, at_least_1
from train.detection.detections import TestBoxes, regions_of
from train.detection.held_out import held_out_boxes
from train.detection.mean_precision import DEFAULT
from train.detection.multi_label import box_loss
from train.parts import from_init, nothing_frozen, open_training
from train.stage import Evaluator
from train.stages.finetuning import check_fine_tuning


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectConfig(RunConfig):
    """A run of detection."""

    frames: Literal["key_frame_videomae", "key_frame"] = "key_frame_videomae"
    """Around the key frame k, of 16 at stride 4: "key_frame_videomae", k-31 to k+29, or "key_frame", k-32 to k+28, as SlowFast
    and mmaction2 have it."""
    short_sides: tuple[int, int] = SHORT_SIDES
    """From what to what the short side of a frame is resized in training before a view is cut out, in pixels."""
    flip: float = 0.5
    """Probability that a view and its boxes are mirrored."""
    jitter: bool = True
    """Shake the boxes of training, by up to a fifth of their width and a tenth of their height."""
    most_boxes: int = MOST
    """Annotated boxes of a clip that are trained on, the first ones."""
    drop_path: float = 0.2
    """Probability that a view skips a branch of the last block; it grows linearly from 0 at the first."""
    head_scale: float = HEAD_SCALE
    """What the initial values of a head that begins anew are multiplied by."""
    layer_decay: float = 0.8
    """Learning rate of a block by that of the next one; the head has the whole."""
    evaluate_boxes: Kind = setting("detection", may_change=True)
    """Whose actions are evaluated: "detection", people as a detector found them, or "truth", as annotated, which tells how good
    the actions alone are, and is no figure of a paper."""
    evaluate_score: float = setting(SURE, may_change=True)
    """Of a detection that is looked at, at least."""
    evaluate_sides: tuple[int, int] = setting(WHOLE, may_change=True)
    """To what the short side of a whole frame is resized in evaluations, and the longest that its long side may become."""
    evaluate_style: Literal["activitynet", "slowfast", "mmaction2"] = setting(DEFAULT, may_change=True)
    """Whose rules mean average precision follows: the benchmark's script, or one of two repositories', which say other
    things on the same boxes. ("mmaction2" counts what is true in excluded seconds, of which a dataset has none, as never
    found.)"""
    expected_classes: int = 80
    """Classes to reckon with in a dry run without --data."""

    views: PlainViews = field(default_factory=lambda: PlainViews(views_per_step=128, views_per_clip=1))
    optim: OptimConfig = setting(default_factory=lambda: OptimConfig(betas=(0.9, 0.999)), may_change=True)

    def __post_init__(self) -> None:
        super(DetectConfig, self).__post_init__()  # slots: the class that a bare super() names is another
        if not (self.model.positions_size or self.model.positions_frames):  # as in fine-tuning
            sizes = {"positions_size": self.model.input_size, "positions_frames": self.model.num_frames}
            object.__setattr__(self, "model", replace(self.model, **sizes))
        check_fine_tuning(self, "drop_path")
        at_least_1(self, "most_boxes")
        for name in ("flip", "evaluate_score"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"--{name.replace('_', '-')} {value} must be 0 to 1")
        short, longest = self.evaluate_sides
        if not self.model.patch_size <= short <= longest:
            raise ValueError(
                f"--evaluate-sides {short} {longest} must be at least a patch, {self.model.patch_size} px, the second at least "
                "the first"
            )

    @property
    def sampling(self) -> SamplingRecipe:
        """Without masks. Raises ValueError if such views cannot be taken."""
        return self.joined(masks=None, temporal=self.frames, crop="random_scale", short_sides=self.short_sides)

    @property
    def test_boxes(self) -> TestBoxes:
        return TestBoxes(self.evaluate_boxes, self.evaluate_score, self.evaluate_sides)


class Detecting:
    """The stage. The classes are those of the dataset's actions.json, in their order."""

    name: ClassVar[str] = DETECT

    def __init__(self, config: DetectConfig) -> None:
        self.config = config

    frozen = nothing_frozen

    @cached_property
    def frames(self) -> KeyFrames | None:
        """Of the dataset. Raises ValueError if it has none."""
        return None if self.config.data is None else KeyFrames(Manifest(self.config.data))

    @property
    def num_classes(self) -> int:
        return len(self.frames.actions) if self.frames else self.config.expected_classes

    def loader(self, ranks: Ranks, state: LoaderState | None, clips_per_batch: int, label_map: Path | None) -> ClipLoader:
        """Endless batches around key frames. Raises ValueError, too, if the run's classes are no longer the dataset's."""
        config, frames = self.config, self.frames
        assert frames is not None
        if label_map is not None and (before := read_label_map(label_map)) != frames.names:
            raise ValueError(
                f"{config.data} has {len(frames.names)} classes such as {frames.names[0]!r}, and the run was begun with "
                f"{len(before)} such as {before[0]!r}; give the dataset that it was begun with, or another --out"
            )
        return open_training(config, self, ranks, state, clips_per_batch, frames.names)

    def model(self, how: Implementation) -> ActionDetector:
        config = self.config
        return ActionDetector(config.model, self.num_classes, config.drop_path, how, config.head_scale)

    def start_from(self, model: Trainable) -> Transfer | None:
        """The encoder, with its last norm where it was pre-trained, and of an earlier detector the rows of these classes."""
        return from_init(self, model, self._head_of)

    def _head_of(self, weights: Weights) -> Head:
        if weights.kind != "detector":
            return Head(False, "head: begins anew: its classes are of views, not of boxes")
        names = self.frames.names if self.frames else None
        return head_of(weights, names, self.num_classes, self.frames.manifest if self.frames else None)

    def groups(self, model: Trainable) -> list[dict[str, Any]]:
        """Layer by layer."""
        depth, decay = self.config.model.encoder_depth, self.config.optim.weight_decay
        return parameter_groups(model.named_parameters(), decay, self.config.layer_decay, depth)

    def loss(self, model: ActionDetector, batch: Batch, draws: Draws | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Of a view the sum over its annotated boxes, of each the mean over the classes; and how many boxes it has. (The
        official code's is that of a rank's batch, summed: twice as much at its two views.)"""
        config, frames = self.config, self.frames
        assert frames is not None
        rows, crops, device = batch.rows.numpy(), batch.crops, batch.views.device
        assert draws is not None, "what is held out is judged by its figure, see `evaluators`"
        flips = draws.flips(config.flip)
        where = batch.epoch, batch.positions.numpy(), rows, crops, flips
        boxes = training_boxes(frames, config.sampling, *where, jitter=config.jitter, most=config.most_boxes)
        keep = on_device(draws.keep(model.drop_rates), device) if config.drop_path else None
        views_nTHWC = flipped(batch.views, flips)
        logits_mC = model(views_nTHWC, regions_of(boxes, device), keep).float()
        labels_mC = on_device(frames.labels(boxes.places), device)
        number = torch.full((), len(boxes.boxes) / len(views_nTHWC), device=device)
        return box_loss(logits_mC, labels_mC) / len(views_nTHWC), {"boxes": number}

    def cost(self, compute: ComputeConfig) -> Cost:
        """Kept outside of the blocks are e N P of patches, the norm's input and statistics, the map over time, in the compute
        type and as floats, and of every box 49 bins and their largest value; reckoned are --most-boxes of a view. While the
        loss runs, the bins' gradient is there, too, and the map's."""
        config, dtype, classes = self.config.model, PRECISIONS[compute.precision].encoder, self.num_classes
        N, D, e, boxes = config.num_tokens, config.encoder_dim, dtype.itemsize, self.config.most_boxes
        block = BlockShape(N, N, D, config.encoder_mlp_dim, config.encoder_heads, dtype)
        cells, bins = N // config.grid[0], BINS * BINS
        with torch.device("meta"):
            sizes = ParameterSizes.of(self.model(Implementation()))
        macs = config.encoder_depth * block.mac + N * config.patch_values * D + boxes * D * classes
        return Cost(
            blocks=((block,) * config.encoder_depth,),
            sizes=sizes,
            gmac=macs / 1e9,
            outside=e * N * (config.patch_values + D) + 2 * STATISTIC * N + boxes * (4 * (bins + 1) * D + 8 * classes),
            errors=boxes * (4 * (bins + 1) * D + 8 * classes),
            loss=4 * D * (boxes * bins + cells) + 4 * boxes * classes,
            inputs=config.num_frames * config.input_size**2 * 3,
            notes={
                "classes": f"{classes:,}",
                "boxes": f"at most {boxes} of a view",
                "forward": f"{macs / 1e9:.2f} GMAC a view of {N} tokens; {6 * macs / 1e12:.3g} TFLOP a view in training",
            },
        )

    def evaluators(self, model: ActionDetector, ranks: Ranks, run: Path, manifest: Manifest) -> Sequence[Evaluator]:
        """The mean average precision on held-out key frames of the run's version of the dataset; the weights with the best
        one are kept."""
        assert self.frames is not None
        return held_out_boxes(self, ranks, manifest, self.frames, self.config.test_boxes, self.config.evaluate_style)
