"""What decides a batch besides the dataset: the values of a `SamplingRecipe`, checked."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from pipeline.sampling import frames, masking
from pipeline.sampling.crops import SHORT_SIDES
from pipeline.sampling.masks.choice import Grid
from pipeline.sampling.masks.rules import DECODER_RULES, RULES, DecoderMaskRule, MaskRule
from pipeline.sampling.randaugment import RandAugment
from pipeline.sampling.splits import checked_split
from pipeline.settings import kept, read, setting, with_values

Crop = Literal["multi_scale", "random_resized", "random_scale", "center", "none"]
CropResize = Literal["antialiased", "official"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainViews:
    """What a step takes from the dataset, without masks. Defaults: VideoMAE V2, Table 10."""

    views_per_step: int = 8192
    """Batch size in views (crops with masks) over all ranks and all gradient accumulation, the paper's batch size."""
    views_per_clip: int = 4
    """R, repeated augmentation: views cropped and masked from one decoded clip, which share its frames."""
    split: str = setting("train", was="all")
    """Clips to take: of a split, or of several, "train,val"; "all": every clip. Those without a split belong to "train". Runs
    begun before there was this field go on with all."""
    shuffle: Literal["global", "window"] = "global"
    """Order of an epoch: one permutation of all clips, or, for object storage, shuffled windows of runs of clips (lanes)."""
    lanes: int | None = None
    """Lanes of shuffle "window", a multiple of the ranks; by default 768 = 2⁸ · 3, or its largest divisor that leaves a lane 16
    clips: fewer for less than 12,288 clips."""
    window: int = 64
    """Clips of a window of shuffle "window", which a rank reads in one go from each of its lanes (about 30 MB of clips of
    10 s). Lanes times window, 49,152 clips, are mixed at any time; about half of them wait in memory, over all ranks."""
    mixture: tuple[tuple[str, float], ...] = ()
    """SOURCE WEIGHT ...: how many times an epoch takes each clip of a source; 1 for sources that are not named."""
    sampling: str = "manifest"
    """Distance of a view's frames: "manifest", as each source was built, or "stride:4", "seconds:0.25", "fps:4" for all."""
    fresh_windows: bool = False
    """Draw frames anew for each of a clip's views (mae_st); the paper's views share theirs."""
    arithmetic: Literal[1, 2] = setting(masking.ARITHMETIC, was=1)
    """Version of what turns seed and position into draws: 2, or 1 for runs that began before it, where the phase of the
    decoder's mask hung on one tube's noise and permutations of 16 clips and fewer were not uniform. What was begun with one
    goes on with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Views(PlainViews):
    """What a step takes from the dataset, and how much of it is hidden. Defaults: VideoMAE V2, Table 10, with the official
    code's counts."""

    mask_ratio: float = 0.9
    """Share of the tubes hidden from the encoder; of the tokens or frames with masks of these."""
    decoder_mask_ratio: float = 0.5
    """Share of the tokens the decoder leaves out: 0.25, 0.5, 0.75 with running cells, which random and frame masks do not
    need; or 0 for encoder-only masking (VideoMAE V1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingRecipe(Views):
    """What decides a batch besides the dataset. A mixture may be given as a mapping.

    Raises ValueError for what cannot be. Plain values: `SamplingRecipe.of(json.loads(json.dumps(asdict(recipe))))` is equal.
    """

    seed: int = 0
    """Of the order, the frames, the crops and the masks."""
    num_frames: int = 16
    """T, frames of a view."""
    input_size: int | tuple[int, int] = 224
    """Side of a view in pixels, or its (height, width)."""
    tubelet_size: int = 2
    """Frames of a token."""
    patch_size: int = 16
    """Side of a token in pixels."""
    temporal: frames.Temporal = "stride"
    """Where the frames of a view lie: "stride" (pre-training), "linspace", "tsn", "tsn_video", or around the key frames of a
    detection dataset "key_frame", "key_frame_videomae" (see `sampling.frames`)."""
    crop: Crop = "multi_scale"
    """"multi_scale" (pre-training), "random_resized" (fine-tuning) or "random_scale" (detection); "center", the largest box in
    the middle that has the aspect of a view, and so fills it; or "none", the whole frame, whatever its aspect."""
    short_sides: tuple[int, int] = setting(SHORT_SIDES, was=SHORT_SIDES)
    """Of crop "random_scale": from what to what the short side of a frame is resized before a view is cut out, in pixels."""
    crop_resize: CropResize = setting("antialiased", was="antialiased")
    """How a training view is made of its crop: "antialiased", to 8 bits, as official pre-training; or "official", as official
    fine-tuning resizes floats: not antialiased, to 16 bits."""
    randaugment: str = setting("", was="")
    """RandAugment of whole frames before the crop, while they are decoded: "rand-m7-n4-mstd0.5-inc1"; or "", none."""
    masks: MaskRule | None = setting("tube", was="tube")
    """What the encoder does not see: "tube", or "random", "frame", "multi-block" (see `sampling.masks`); None: views without
    masks, of any number of frames and any size."""
    decoder_masks: DecoderMaskRule = setting("running-cell", was="running-cell")
    """What the decoder leaves out, if its ratio is over 0: "running-cell", or "random", "frame"."""

    def __post_init__(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "shuffle": ("global", "window"),
            "temporal": frames.TEMPORAL,
            "crop": get_args(Crop),
            "crop_resize": get_args(CropResize),
        }
        choices |= {"arithmetic": (1, 2), "masks": (*RULES, None), "decoder_masks": tuple(DECODER_RULES)}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name} {value!r} is not known; allowed are {', '.join(map(repr, allowed))}")
        if not -(1 << 63) <= self.seed < 1 << 64:
            raise ValueError(f"seed {self.seed} has more than 64 bits; allowed are {-(1 << 63)} to {(1 << 64) - 1}")
        if min(self.views_per_clip, self.views_per_step) < 1 or self.views_per_step % self.views_per_clip:
            raise ValueError(
                f"views_per_step {self.views_per_step} must be a multiple of views_per_clip {self.views_per_clip}, "
                "both at least 1"
            )
        object.__setattr__(self, "input_size", _checked_size(self.input_size))
        if self.num_frames < 1:
            raise ValueError(f"num_frames {self.num_frames} must be at least 1")
        if self.masks and (self.num_frames % self.tubelet_size or any(side % self.patch_size for side in self.view_size)):
            size = " x ".join(map(str, dict.fromkeys(self.view_size)))
            raise ValueError(
                f"{self.num_frames} frames of {size} px do not divide into tubelets of {self.tubelet_size} frames "
                f"and patches of {self.patch_size} px"
            )
        for name, value in (("window", self.window), ("lanes", self.lanes)):
            if value is not None and value < 1:
                raise ValueError(f"{name} {value} must be at least 1")
        object.__setattr__(self, "short_sides", tuple(self.short_sides))
        if self.crop == "random_scale" and not max(self.view_size) <= self.short_sides[0] <= self.short_sides[1]:
            low, high = self.short_sides
            raise ValueError(
                f"short_sides {low} to {high}: crop 'random_scale' cuts views of {max(self.view_size)} px out of it, so the "
                "lower must be at least as much, and the upper at least the lower"
            )
        object.__setattr__(self, "split", checked_split(self.split))
        object.__setattr__(self, "mixture", _checked_mixture(self.mixture))
        frames.parse_rate(self.sampling)
        if self.randaugment:
            RandAugment.parse(self.randaugment)
        if self.masks is not None:
            _ = self.tokens  # refuses impossible mask ratios

    @staticmethod
    def of(values: Mapping[str, Any]) -> "SamplingRecipe":
        """The recipe in a state, whatever code wrote it. Raises ValueError if that was newer than this."""
        return read(SamplingRecipe, values, "the sampling recipe")

    def going_on(self, before: "SamplingRecipe") -> "SamplingRecipe":
        """This recipe for a state that belongs to another: it keeps that one's arithmetic, unless it names its own.

        Raises ValueError, with what differs, for a recipe that would give other batches.
        """
        recipe = with_values(self, kept(asdict(before), self))
        changed = [
            f"{name} (was {was}, is {getattr(recipe, name)})"
            for name, was in asdict(before).items()
            if getattr(recipe, name) != was
        ]
        if changed:
            raise ValueError(f"the state belongs to another sampling recipe: {', '.join(changed)}; restore these values")
        return recipe

    @property
    def view_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.input_size if isinstance(self.input_size, tuple) else (self.input_size, self.input_size)

    @property
    def pixels(self) -> type[np.integer]:
        """Of training views: uint8 levels, or int16 in 128ths of a level."""
        return np.int16 if self.crop_resize == "official" else np.uint8

    @property
    def grid(self) -> Grid:
        """(T', h, w) in tokens."""
        height, width = self.view_size
        return self.num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    @property
    def tokens(self) -> masking.TokenCounts:
        """Visible, decoded and loss tokens of a view."""
        assert self.masks is not None
        return masking.token_counts(self.grid, self.mask_ratio, self.decoder_mask_ratio, self.masks, self.decoder_masks)

    @property
    def frames_per_clip(self) -> int:
        """Frames that are sampled of a clip: T for all of its views, or for each."""
        return self.num_frames * (self.views_per_clip if self.fresh_windows else 1)

    @property
    def clips_per_step(self) -> int:
        return self.views_per_step // self.views_per_clip


def _checked_size(size: object) -> int | tuple[int, int]:
    """In one form, so that equal sizes are equal: one number for a square, and what JSON made of a pair is a pair again."""
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"input_size {size!r} must be the side of a square or (height, width), in whole pixels, at least 1")
    return sides[0] if sides[0] == sides[1] else sides


def _checked_mixture(mixture: object) -> tuple[tuple[str, float], ...]:
    """In one form, so that equal mixtures are equal: sorted by name."""
    pairs = mixture.items() if isinstance(mixture, Mapping) else mixture
    weights = sorted((str(name), float(weight)) for name, weight in pairs)  # type: ignore[attr-defined]
    if len({name for name, _ in weights}) < len(weights):
        raise ValueError(f"mixture {weights} names a source twice")
    for name, weight in weights:
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"mixture: the weight {weight} of source {name!r} must be a number of at least 0")
    return tuple(weights)
