"""What decides a batch besides the dataset: the values of a `SamplingRecipe`, checked."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.sampling import frames, masking
from pipeline.settings import kept, read, setting, with_values

CROPS = ("multi_scale", "random_resized")
SHUFFLES = ("global", "window")
ARITHMETICS = (1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingRecipe:
    """What decides a batch besides the dataset. Defaults: VideoMAE V2, Table 10, with the official code's counts.

    Raises ValueError for what cannot be. Plain values: `SamplingRecipe.of(json.loads(json.dumps(asdict(recipe))))` is equal.
    """

    seed: int = 0
    """Of the order, the frames, the crops and the masks."""
    views_per_step: int = 8192
    """Views (crops with masks) in one optimizer step over all ranks; what the paper calls the batch size."""
    views_per_clip: int = 4
    """R, repeated augmentation: views that share one decoded clip and its frames."""
    num_frames: int = 16
    """T, frames of a view."""
    input_size: int = 224
    """Side of a view in pixels."""
    tubelet_size: int = 2
    """Frames of a token."""
    patch_size: int = 16
    """Side of a token in pixels."""
    mask_ratio: float = 0.9
    """Share of the tubes hidden from the encoder."""
    decoder_mask_ratio: float = 0.5
    """Share of the tokens the decoder leaves out: 0.25, 0.5, 0.75, or 0 for encoder-only masking (VideoMAE V1)."""
    shuffle: str = "global"
    """Order of an epoch: "global", one permutation of all clips; or "window", for object storage: see `sampling.order`."""
    lanes: int | None = None
    """L of shuffle "window". None: 768 = 2⁸ · 3, or its largest divisor that leaves a lane 16 clips."""
    window: int = 64
    """Clips that shuffle "window" shuffles together in each lane, read in one go (about 30 MB of clips of 10 s). L · window
    clips, 49,152, are mixed at any time; about half of them wait in memory, over all ranks."""
    mixture: tuple[tuple[str, float], ...] = ()
    """(source, weight): how many times a source's clips are taken in an epoch. Sources that are not named have weight 1, all
    of them without a mixture: natural proportions. A mapping is accepted as well."""
    sampling: str = "manifest"
    """Distance of frames: "manifest", as each source was built, or for all "stride:4", "seconds:0.25", "fps:4"."""
    temporal: str = "stride"
    """Where the frames of a view lie: "stride" (pre-training), "linspace", "tsn", "tsn_video" (see `sampling.frames`)."""
    fresh_windows: bool = False
    """Draw every view's frames anew (mae_st), instead of sharing them among the R views of a clip (the paper)."""
    crop: str = "multi_scale"
    """"multi_scale" (pre-training) or "random_resized" (fine-tuning)."""
    arithmetic: int = setting(masking.ARITHMETIC, was=1)
    """Version of what turns keys into draws: 2, or 1 for runs that began before it, where the phase of the decoder's mask hung
    on one tube's noise and permutations of 16 clips and fewer were not uniform. A state goes on with its own."""

    def __post_init__(self) -> None:
        choices = {"shuffle": SHUFFLES, "temporal": frames.TEMPORAL, "crop": CROPS, "arithmetic": ARITHMETICS}
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
        if self.num_frames % self.tubelet_size or self.input_size % self.patch_size:
            raise ValueError(
                f"{self.num_frames} frames of {self.input_size} px do not divide into tubelets of {self.tubelet_size} frames "
                f"and patches of {self.patch_size} px"
            )
        if self.window < 1 or (self.lanes is not None and self.lanes < 1):
            raise ValueError(f"window {self.window} and lanes {self.lanes} must be at least 1")
        object.__setattr__(self, "mixture", _checked_mixture(self.mixture))
        frames.parse_rate(self.sampling)
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
    def grid(self) -> masking.Grid:
        """(T', h, w) in tokens."""
        side = self.input_size // self.patch_size
        return self.num_frames // self.tubelet_size, side, side

    @property
    def tokens(self) -> masking.TokenCounts:
        """Visible, decoded and loss tokens of a view."""
        return masking.token_counts(self.grid, self.mask_ratio, self.decoder_mask_ratio)

    @property
    def frames_per_clip(self) -> int:
        """Frames that are sampled of a clip: T for all of its views, or for each."""
        return self.num_frames * (self.views_per_clip if self.fresh_windows else 1)

    @property
    def clips_per_step(self) -> int:
        return self.views_per_step // self.views_per_clip


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
