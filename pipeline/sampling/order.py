"""The order of an epoch as arithmetic: position -> row of the manifest, for any position, without what came before it.

`shuffle="global"`: one keyed permutation of all clips. Random reads; for local disks.

`shuffle="window"`, for object storage: the manifest is cut into L equal runs of clips, *lanes* (their sizes differ by at most
one clip), and position p belongs to lane p mod L, so that rank r of W, which serves the positions ≡ r modulo W, serves whole
lanes if W divides L. A lane goes once through its run in an epoch: from a keyed place on, around its end, in windows of
`window` clips that are shuffled each. So a lane reads its bytes in long runs, once an epoch, and always the same bytes, which
a cache beside the rank may keep; and L · window clips are mixed at any time. What "in order" means is the order of the
manifest's rows: it belongs to the dataset's fingerprint, where shards and offsets do not. `check_reading_order` refuses a
manifest whose rows do not follow its shards.

A *mixture* gives sources weights. Weight w makes a source round(w · N) positions long, N its clips, and an epoch is as long
as all sources together. A source counts its positions on across epochs and begins its next pass, in another order, when all
its clips are through: weight 0.5 takes each clip once in two epochs, weight 3 three times in one. With windows each source
has lanes of its own, in proportion; a source's length is then a whole number of lanes.

In each case the last positions that fill no whole step are dropped, other clips each time.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline import keyed
from pipeline.sampling.recipe import SamplingRecipe
from pipeline.sampling.splits import ALL, AT_ONCE, clips_of_split
from pipeline.storage import files
from pipeline.storage.dataset import Dataset
from pipeline.storage.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

LANES = 768  # 2⁸ · 3: served by 1, 2, 3, 4, 6, 8, 12, 16 ... ranks
LANE_CLIPS = 16  # fewest clips of a lane, where the number of lanes is ours to choose
ROUNDING = 0.1  # most by which lanes may change a source's share of an epoch


class Order:
    """The order of one dataset under one recipe; everything that does not depend on the epoch, computed once.

    `num_clips` N, those of the split; `steps_per_epoch`; `num_positions`, of them in an epoch before the last ones are dropped;
    `shares`, {source: its positions of an epoch} of a mixture; `lanes`, their number, 0 for a global shuffle.
    """

    def __init__(
        self, recipe: SamplingRecipe, num_clips: int, names: list[str] | None = None, codes: np.ndarray | None = None
    ) -> None:
        """`names` of the sources and `codes`, each row's place among them, are needed for a mixture. In `codes` a row that the
        split leaves out has -1; without a mixture the others have 0.

        Raises ValueError for a mixture or lanes that this dataset cannot have, and if one step takes more clips than there are.
        """
        self.recipe, self.num_clips = recipe, num_clips
        self.mixed = bool(recipe.mixture)
        self._permute = keyed.feistel if recipe.arithmetic == 1 else keyed.permute
        self._sources = _mixture(recipe, names, codes) if self.mixed else _whole(num_clips, codes)
        self.lanes = 0
        if recipe.shuffle == "window":
            self._cut_lanes()
            self.num_positions = self.lanes * self._lane_positions
        else:
            self.num_positions = int(self._sources.virtual.sum())
        self.shares = dict(zip(self._sources.names, self._sources.virtual.tolist(), strict=True))
        self.steps_per_epoch = self.num_positions // recipe.clips_per_step
        if self.steps_per_epoch == 0:
            of_split = "" if recipe.split == ALL else f" of split {recipe.split}"
            raise ValueError(
                f"the dataset has {self.num_positions} clips{of_split} an epoch, and one step takes {recipe.clips_per_step} "
                f"(views_per_step {recipe.views_per_step} / views_per_clip {recipe.views_per_clip}); lower views_per_step to "
                f"at most {self.num_positions * recipe.views_per_clip}, or build a dataset with more clips"
            )

    def rank_positions(self, step: int, rank: int, world_size: int) -> np.ndarray:
        """The positions that rank r of W serves in a step of the epoch, in order -> int64 (clips_per_step / W,).

        Raises ValueError, with the world sizes that are possible, if W does not divide the clips of a step, and the lanes.
        """
        clips = self.recipe.clips_per_step
        common = math.gcd(clips, self.lanes)
        if common % world_size:
            allowed = [w for w in range(1, common + 1) if common % w == 0]
            listed = ", ".join(map(str, allowed if len(allowed) <= 16 else [*allowed[:15], "…", allowed[-1]]))
            lanes = f" of {self.lanes} lanes" if self.lanes else ""
            raise ValueError(
                f"{clips} clips a step{lanes} cannot be shared by {world_size} ranks; possible world sizes: {listed}"
            )
        return step * clips + np.arange(rank, clips, world_size)

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Positions (n,) of an epoch, each below `num_positions` -> rows of the manifest (n,) int64."""
        if self.lanes:
            return self._sources.rows(self._window_places(epoch, positions))
        places = self._permute(positions, self.num_positions, keyed.mix(self.recipe.seed, keyed.ORDER, epoch))
        return self._sources.rows(self._pass_places(epoch, places) if self.mixed else places)

    @property
    def num_distinct(self) -> int:
        """Clips that may be taken."""
        return int(self._sources.clips.sum())

    def clips(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """Rows of the clips that may be taken, source by source: all of them, or those from a place on, up to another."""
        return self._sources.rows(np.arange(first, min(self.num_distinct, end or self.num_distinct)))

    def substitutes(self, epoch: int, positions: np.ndarray, attempts: np.ndarray) -> np.ndarray:
        """Rows that stand in for clips that could not be decoded -> (n,); attempt 1 for the clip itself, 2 for its substitute.

        Any clip of the split, of the sources in proportion: the neighbours of a clip may lie in the same broken shard.
        """
        key = keyed.mix(self.recipe.seed, keyed.SUBSTITUTE, epoch, positions, attempts)
        if not self.mixed:
            return self._sources.rows(keyed.below(key, self.num_clips))
        sources = self._sources
        source = np.searchsorted(sources.virtual.cumsum(), keyed.below(key, int(sources.virtual.sum())), side="right")
        return sources.rows(sources.first[source] + keyed.below(keyed.mix(key, 0), sources.clips[source]))

    def window_positions(self, epoch: int, position: int) -> np.ndarray:
        """All positions of this epoch that are shuffled in one window with this one, ascending: what to read in one go.

        Their rows are one run of the split's clips, two where the lane's order goes around the end of its run.
        """
        assert self.lanes, "a global shuffle has no windows"
        lane, turn, place = self._lane_places(epoch, np.array([position]))
        _, begin, size, _ = self._windows(lane, turn, place)
        first = position - int(place[0] - begin[0]) * self.lanes
        positions = first + np.arange(int(size[0])) * self.lanes
        return positions[(positions >= 0) & (positions < self.steps_per_epoch * self.recipe.clips_per_step)]

    def _pass_places(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """Places in the virtual epoch of a mixture -> places among the clips, source by source."""
        sources = self._sources
        end = sources.virtual.cumsum()
        source = np.searchsorted(end, places, side="right")
        counter = epoch * sources.virtual[source] + places - (end - sources.virtual)[source]
        number, index = np.divmod(counter, sources.clips[source])
        key = keyed.mix(self.recipe.seed, keyed.PASS, source, number)
        return sources.first[source] + self._permute(index, sources.clips[source], key)

    def _cut_lanes(self) -> None:
        """Lane t -> its run: `_lane_clips[t]` clips from place `_lane_first[t]` on."""
        sources, recipe = self._sources, self.recipe
        available = int(sources.virtual.sum())
        self.lanes = recipe.lanes or max(
            n for n in range(1, LANES + 1) if LANES % n == 0 and n * LANE_CLIPS <= max(LANE_CLIPS, available)
        )
        if self.lanes > available:
            raise ValueError(f"{self.lanes} lanes are more than the {available} clips of an epoch; give fewer lanes, or None")
        self._lane_positions = available // self.lanes
        counts = _share_lanes(sources, self.lanes)
        cuts = [
            np.arange(n + 1) * clips // n + first for n, clips, first in zip(counts, sources.clips, sources.first, strict=True)
        ]
        # Golden steps through the runs: a step that is smaller than L still spans the whole dataset.
        runs = np.arange(self.lanes) * _coprime_near(self.lanes * (math.sqrt(5) - 1) / 2, self.lanes) % self.lanes
        self._lane_first = np.concatenate([cut[:-1] for cut in cuts])[runs]
        self._lane_clips = np.concatenate([np.diff(cut) for cut in cuts])[runs]
        if self.mixed:
            self._sources.virtual[:] = counts * self._lane_positions

    def _lane_places(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions -> (lane, number of its pass, place in the pass). A pass is an epoch, unless weights make it another."""
        lane, place = positions % self.lanes, positions // self.lanes
        if not self.mixed:
            return lane, np.full_like(lane, epoch), place
        turn, place = np.divmod(epoch * self._lane_positions + place, self._lane_clips[lane])
        return lane, turn, place

    def _windows(self, lane: np.ndarray, turn: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, ...]:
        """-> (where the pass starts in the run, first place of the window, its clips, its key)."""
        seed, window, clips = self.recipe.seed, self.recipe.window, self._lane_clips[lane]
        start = keyed.below(keyed.mix(seed, keyed.LANE, lane, turn), clips)
        phase = lane * window // self.lanes  # the lanes of a rank change windows one after the other
        number = (place + phase) // window
        begin = np.maximum(number * window - phase, 0)
        size = np.minimum((number + 1) * window - phase, clips) - begin
        return start, begin, size, keyed.mix(seed, keyed.WINDOW, lane, turn, number)

    def _window_places(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Positions -> places among the clips, source by source."""
        lane, turn, place = self._lane_places(epoch, positions)
        start, begin, size, key = self._windows(lane, turn, place)
        shuffled = begin + self._permute(place - begin, size, key)
        return self._lane_first[lane] + (start + shuffled) % self._lane_clips[lane]


@functools.lru_cache(maxsize=4)
def order_of(manifest: Dataset, recipe: SamplingRecipe) -> Order:
    """The order of a dataset under a recipe. Raises ValueError if there is none, see `Order`."""
    sources = (manifest.sources, manifest.source) if recipe.mixture else ()
    if (taken := clips_of_split(manifest, recipe.split)) is None:
        return Order(recipe, len(manifest), *sources)
    names, codes = sources or (None, np.zeros(len(manifest), np.int16))
    return Order(recipe, int(taken.sum()), names, np.where(taken, codes, np.int16(-1)))


def check_reading_order(manifest: Manifest) -> None:
    """Raises ValueError if rows do not follow the shards: a lane would read here and there, not in long runs. Looked at once
    and kept beside the dataset: 100 million rows take 1.3 s of a core."""

    def look(file: Path) -> None:
        row = first_that_goes_back(*(manifest.column(name, whole=True) for name in ("shard", "offset")))
        files.write_durably(file, json.dumps(row).encode())

    row = json.loads(manifest.cached("reading-order.json", look).read_bytes())
    if row is not None and row < len(manifest):  # of this version
        raise ValueError(
            f"shuffle 'window' reads shards from beginning to end, but the rows of {manifest.place} do not follow them: "
            f"row {row} goes back in {manifest.clip(row).shard}; use shuffle 'global', or build the dataset anew"
        )


def first_that_goes_back(shards: "pa.ChunkedArray", offsets: "pa.ChunkedArray") -> int | None:
    """The first row that lies before an earlier one of its shard, or comes to a shard that others came after."""
    seen: set[str] = set()
    last: tuple[str, int] = ("", -1)  # shard and offset of the row before
    for begin in range(0, len(offsets), AT_ONCE):
        names = shards.slice(begin, AT_ONCE).combine_chunks().dictionary_encode()
        codes, places = names.indices.to_numpy(), offsets.slice(begin, AT_ONCE).to_numpy()
        changes = np.r_[0, np.flatnonzero(np.diff(codes)) + 1]
        bad = (np.flatnonzero((np.diff(codes) == 0) & (np.diff(places) < 0)) + 1).tolist()[:1]
        for place in changes.tolist():
            name = names.dictionary[int(codes[place])].as_py()
            if place == 0 and name == last[0]:
                bad += [0] if places[0] < last[1] else []
            elif name in seen:
                bad.append(place)
                break
            seen.add(name)
        if bad:
            return begin + min(bad)
        last = names.dictionary[int(codes[-1])].as_py(), int(places[-1])
    return None


@dataclass(frozen=True, slots=True)
class _Sources:
    """The clips of S sources, one source after the other: source s has places first[s] to first[s] + clips[s] - 1."""

    names: list[str]
    clips: np.ndarray  # (S,), N of each
    virtual: np.ndarray  # (S,), its positions in an epoch
    first: np.ndarray  # (S,)
    run_first: np.ndarray  # (runs,), the places where a run of consecutive rows begins, and
    run_rows: np.ndarray  # its first row: a source has few runs, and no list of its rows is needed

    def rows(self, places: np.ndarray) -> np.ndarray:
        run = np.searchsorted(self.run_first, places, side="right") - 1
        return self.run_rows[run] + places - self.run_first[run]


def _whole(num_clips: int, codes: np.ndarray | None) -> _Sources:
    """The dataset, or what the split takes of it, as one source."""
    zero, size = np.zeros(1, np.int64), np.array([num_clips])
    return _Sources(["all"], size, size.copy(), zero, *((zero, zero) if codes is None else _runs(codes, [0])))


def _runs(codes: np.ndarray, wanted: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Runs of rows with equal codes, those of the first code that is wanted first -> their first places, their first rows."""
    starts = np.r_[0, np.flatnonzero(np.diff(codes)) + 1]
    lengths = np.diff(np.r_[starts, len(codes)])
    runs = np.concatenate([np.flatnonzero(codes[starts] == code) for code in wanted])
    return lengths[runs].cumsum() - lengths[runs], starts[runs]


def _mixture(recipe: SamplingRecipe, names: list[str] | None, codes: np.ndarray | None) -> _Sources:
    assert names is not None and codes is not None
    counts = dict(zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=True))
    counts = {name: clips for name, clips in counts.items() if clips}
    weights = dict(recipe.mixture)
    if unknown := sorted(weights.keys() - counts.keys()):
        have = ", ".join(f"{name} ({clips} clips)" for name, clips in sorted(counts.items()))
        what = "the dataset" if recipe.split == ALL else f"split {recipe.split}"
        raise ValueError(f"mixture: {what} has no source {', '.join(map(repr, unknown))}; it has {have}")
    # by name, so that the order in which the manifest happens to list its sources decides nothing
    used = sorted(name for name in counts if weights.get(name, 1.0) > 0)
    if not used:
        raise ValueError("mixture: every source has weight 0")
    clips = np.array([counts[name] for name in used])
    virtual = np.floor(clips * np.array([weights.get(name, 1.0) for name in used]) + 0.5).astype(np.int64)
    if not virtual.all():
        name = used[int(virtual.argmin())]
        raise ValueError(f"mixture: weight {weights[name]} gives source {name!r} no clip of its {counts[name]} in an epoch")
    return _Sources(used, clips, virtual, clips.cumsum() - clips, *_runs(codes, [names.index(name) for name in used]))


def _share_lanes(sources: _Sources, lanes: int) -> np.ndarray:
    """(S,) lanes of each source, at least one, in proportion to their positions of an epoch (Webster's method)."""
    counts = np.ones(len(sources.clips), np.int64)
    for _ in range(lanes - len(counts)):
        counts[(sources.virtual / (2 * counts + 1)).argmax()] += 1
    asked = lanes * sources.virtual / sources.virtual.sum()
    for name, n, clips, wanted in zip(sources.names, counts.tolist(), sources.clips.tolist(), asked.tolist(), strict=True):
        if n > clips or abs(n - wanted) > ROUNDING * wanted:
            raise ValueError(
                f"mixture: with shuffle 'window' a source has whole lanes, and {name!r} ({clips} clips) should have "
                f"{wanted:.2f} of {lanes}; give {'fewer' if n > clips else 'more'} lanes or another weight, or use shuffle "
                "'global'"
            )
    return counts


def _coprime_near(value: float, n: int) -> int:
    """The whole number nearest to a value that shares no factor with n."""
    return min((k for k in range(1, n + 1) if math.gcd(k, n) == 1), key=lambda k: abs(k - value))
