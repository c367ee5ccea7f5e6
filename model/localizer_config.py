"""The sizes of a localizer of actions, as ActionFormer's public configurations have them."""

import math
from dataclasses import dataclass

LAST_RANGE = 10_000.0  # steps: no action is longer
RELATIVE_FIRST = 4.0  # steps: the longest distance that the first level regresses, doubled from level to level


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalizerConfig:
    """Sizes of the network and of the sequences it is built for. Defaults: ActionFormer on THUMOS14."""

    input_dim: int = 1408
    """Width of the features (ViT-g 1408, ViT-B 768)."""
    num_steps: int = 2304
    """Longest sequence of features in training; longer videos are cut there, and seen whole in an evaluation."""
    dim: int = 512
    """Width D of the pyramid."""
    head_dim: int = 512
    """Width of the two heads."""
    num_heads: int = 4
    """Attention heads."""
    embed_depth: int = 2
    """Convolutions that project the features."""
    stem_depth: int = 2
    """Blocks before the pyramid."""
    num_levels: int = 6
    """Of the pyramid; each has half the steps of the one before."""
    head_depth: int = 3
    """Convolutions of a head, the last one included."""
    windows: tuple[int, ...] = (19,)
    """Steps that a step's attention sees, itself in the middle, of each level, or one for all; -1: all of the sequence."""
    positions: bool = False
    """Whether a table of sines is added to what is projected."""
    drop_path: float = 0.1
    """Stochastic depth, of every block alike."""
    prior: float = 0.01
    """Probability of each class where training begins."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))  # of JSON
        counts = ("input_dim", "num_steps", "dim", "head_dim", "num_heads", "embed_depth", "stem_depth", "num_levels")
        for name in (*counts, "head_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be at least 1")
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path {self.drop_path} must be at least 0 and less than 1")
        if not 0 < self.prior < 1:
            raise ValueError(f"prior {self.prior} must be over 0 and less than 1")
        if len(self.windows) not in (1, self.num_levels) or any(w != -1 and (w < 3 or w % 2 == 0) for w in self.windows):
            raise ValueError(
                f"windows {' '.join(map(str, self.windows))} must be one number, or one for each of the {self.num_levels} "
                "levels: odd ones of at least 3, or -1 for the whole sequence"
            )
        if self.num_steps % self.least_steps:
            below = self.num_steps // self.least_steps * self.least_steps
            raise ValueError(
                f"num_steps {self.num_steps} must be a multiple of {self.least_steps}, 2^({self.num_levels} levels - 1); "
                f"{below or self.least_steps} is one"
            )

    @property
    def least_steps(self) -> int:
        """Of which every sequence is a multiple: so that each level has half of the steps before."""
        return int(2 ** (self.num_levels - 1))

    @property
    def strides(self) -> list[int]:
        """Steps between the points of each level."""
        return [2**level for level in range(self.num_levels)]

    @property
    def ranges(self) -> list[tuple[float, float]]:
        """Least and largest distance, in steps, to an action's farther end that each level answers for: 0 to 4, 4 to 8, ..."""
        ends = [RELATIVE_FIRST * 2**level for level in range(self.num_levels - 1)]
        return list(zip([0.0, *ends], [*ends, LAST_RANGE], strict=True))

    @property
    def level_windows(self) -> list[int]:
        return list(self.windows) if len(self.windows) > 1 else list(self.windows) * self.num_levels

    def whole(self, steps: int) -> int:
        """The length that a sequence of so many steps is filled up to: what the network is built for, or, of a longer one, the
        next that the levels can halve."""
        return max(self.num_steps, math.ceil(steps / self.least_steps) * self.least_steps)
