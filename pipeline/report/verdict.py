"""What limits a run, what to change and what that brings: one rule for each limit, on measured numbers and nothing else. The
first that holds is the verdict.

Rates are views/s of one rank. A *ceiling* is the rate at which one thing, alone, would be used up: the cores, the decoding
workers, the storage, the model. A change raises some of them; the lowest one after it is the next that is met.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Any

DISTURBED = 0.1  # of the cores: as many in use by other programs make figures doubtful
PROVEN = 0.05  # of the rate with batches from memory: less than that lost to data counts as nothing
BUSY = 0.85  # of the workers' time, from which on they are used up
FAST_GOP, FAST_REFERENCES = 32, 1 / 4  # h264-fast: frames between two key frames, and the share of them that is referred to
FAST_COST = 1.6  # times as long as a frame of h264-plain one of these takes to decode: the cheap ones are left out
REPEATED = 4  # views of a clip, the paper's
WORTH = 1.2  # a change that brings less is not proposed before more cores

CEILINGS = {
    "cores": "the cores",
    "workers": "the workers",
    "planning": "the worker that samples batches",
    "storage": "the storage",
    "model": "the model",
}
STAGE_NAMES = {
    "plan": "sampling frames, crops and masks",
    "fetch": "reading and checking",
    "demux": "opening the file",
    "decode": "decoding frames",
    "colour": "conversion to RGB",
    "augment": "RandAugment",
    "resize": "crop and resize",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What was measured; None where it was not."""

    views_per_clip: int
    cores: int  # that this process may use
    workers: int  # that decode
    prefetch: int = 3
    shares_cores: bool = False  # the model runs on the same cores
    loader: float | None = None  # views/s: batches and no model
    model: float | None = None  # one batch, again and again
    cached: float | None = None  # the model fed by batches from memory
    together: float | None = None  # the model fed by the loader
    target: float | None = None  # what the loader alone shall give
    spread: float = 0.0  # of the rates' repetitions, the widest: (most - least) / median
    batches: int = 0  # of `together`
    seconds_per_batch: float = 0.0
    wait_share: float = 0.0  # of its time
    worst_share: float = 0.0  # of that waiting, what one batch in twenty made
    longest_wait: float = 0.0  # seconds
    copy_share: float = 0.0  # of a step's time, copying to the device
    busy: float = 1.0  # of the workers' time, when the loader was asked for all it can give
    core_ms: Mapping[str, float] = field(default_factory=dict)  # a clip, by stage: of a core
    wall_ms: Mapping[str, float] = field(default_factory=dict)  # that pass
    work_per_core: float = 1.0  # time that passes per time on a core, but for fetching: above 1 workers wait for cores
    frames_decoded: float = 0.0  # a clip
    frames_spanned: float = 0.0
    frames_kept: float = 0.0
    fetch_rate: float | None = None  # clips/s of fetching alone at the best concurrency
    sources: Sequence[tuple[str, float, float]] = ()  # name, share of the samples, share of the decoding time
    neighbours: float = 0.0  # cores that other programs used meanwhile
    clips: int = 1000  # that the figures are means of

    @property
    def core_ms_per_clip(self) -> float:
        return sum(self.core_ms.values())

    @property
    def clip_ms(self) -> float:
        """That a worker is busy with a clip."""
        return sum(ms for stage, ms in self.wall_ms.items() if stage != "plan")

    @property
    def headroom(self) -> float | None:
        """How many times as fast the run would be if no batch had to be decoded."""
        return self.cached / self.together if self.cached and self.together else None

    @property
    def lost(self) -> float:
        """Share of the run's time that data costs."""
        return max(self.wait_share, 1 - 1 / self.headroom if self.headroom else 0.0)

    @property
    def decoding(self) -> float:
        """Share of the cores' time that decoding takes while the model runs."""
        rate = self.together or 0.0
        return min(1.0, self.core_ms_per_clip / 1000 / self.views_per_clip * rate / self.cores)

    @property
    def proof(self) -> str:
        return f"; batches from memory bring {self.headroom:.2f} ×" if self.headroom else ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule says."""

    limit: str
    limits: str
    change: str
    cost: str = "none"
    raises: Mapping[str, float] = field(default_factory=dict)  # ceiling -> factor
    gain: float | None = None  # where it does not follow from the ceilings


def ceilings(evidence: Evidence) -> dict[str, float]:
    """views/s by what would be used up."""
    views, found = evidence.views_per_clip, {}
    if evidence.core_ms_per_clip:
        found["cores"] = 1000 * evidence.cores * views / evidence.core_ms_per_clip
    if evidence.clip_ms:
        found["workers"] = 1000 * evidence.workers * views / evidence.clip_ms
    if plan := evidence.core_ms.get("plan"):
        found["planning"] = 1000 * views / plan
    if evidence.fetch_rate:
        found["storage"] = evidence.fetch_rate * views
    if evidence.model:
        found["model"] = evidence.model
    return found


def not_the_data(evidence: Evidence) -> Finding | None:
    """Batches from memory bring less than 5 % more, and the run waits for less than 5 % of its time."""
    if evidence.together is None or evidence.lost >= PROVEN:
        return None
    proof = "no batches from memory were tried"
    if evidence.headroom:
        proof = f"batches from memory bring {max(0.0, evidence.headroom - 1):.1%} more"
    times = evidence.loader / evidence.together if evidence.loader else 0.0
    spare = f"; the loader alone is {times:.1f} times as fast" if times > 1 else ""
    limits = f"The model: training waits for data {evidence.wait_share:.1%} of its time, {proof}{spare}"
    change = "None to the data: a faster loader would gain nothing here. Look at the model's own time"
    return Finding("model", limits, change, gain=1.0)


def disturbed(evidence: Evidence) -> Finding | None:
    """No model needs the cores, and other programs have 30 % of them, or workers, no more than cores, lack one 30 % of their
    time."""
    taken = evidence.neighbours / evidence.cores
    waiting = 1 - 1 / evidence.work_per_core if evidence.workers <= evidence.cores else 0.0
    if evidence.shares_cores or max(taken, waiting) < 0.3:
        return None
    limits = f"Other programs have {evidence.neighbours:.1f} of the {evidence.cores} cores"
    if waiting > taken:
        limits = f"Something else has the cores: the workers wait for one {waiting:.0%} of their time"
    change = "Find out who has them (top; a container's CPU quota; other jobs on the node), and measure again"
    return Finding("disturbed", limits, change, raises={"workers": 1 / max(1 - max(taken, waiting), 0.1)})


def shared_cores(evidence: Evidence) -> Finding | None:
    """The model runs on the cores that decode, and the run does not mostly wait: what one takes, the other lacks."""
    if not (evidence.shares_cores and evidence.model and evidence.together and evidence.wait_share < 0.5):
        return None
    share, (cheaper, factor) = evidence.decoding, cheaper_views(evidence)
    gain = 1 / (1 - share + share / factor)
    if not cheaper or gain < 1.1:
        cheaper, gain = ("Run the model on a GPU, or decode on more cores", "the machine"), 1 / max(1 - share, 0.1)
    limits = f"The cores, which model and decoder share: decoding takes {share:.0%} of their time{evidence.proof}"
    return Finding("shared cores", limits, *cheaper, {"cores": factor, "workers": factor}, gain)


def rare_batches(evidence: Evidence) -> Finding | None:
    """Half of the waiting or more is made by one batch in twenty."""
    if evidence.worst_share < 0.5 or evidence.batches < 40:
        return None
    deep = evidence.prefetch + ceil(evidence.longest_wait / max(evidence.seconds_per_batch, 1e-3))
    limits = f"Rare slow batches: one in twenty makes {evidence.worst_share:.0%} of the waiting, the longest took "
    limits += f"{evidence.longest_wait:.2f} s; mostly the loader is fast enough"
    change = f"--loader.prefetch {deep} instead of {evidence.prefetch}, which lasts through the longest wait seen"
    return Finding("tail", limits, change, "memory for each batch", gain=1 / (1 - evidence.wait_share * evidence.worst_share))


def storage(evidence: Evidence) -> Finding | None:
    """The workers wait for bytes 40 % of their time or more."""
    waiting = evidence.wall_ms.get("fetch", 0.0) - evidence.core_ms.get("fetch", 0.0)
    if not evidence.clip_ms or waiting / evidence.clip_ms < 0.4:
        return None
    limits = f"Storage: the workers wait for bytes {waiting / evidence.clip_ms:.0%} of their time, {waiting:.0f} ms a clip"
    wanted = min(4 * evidence.cores, ceil(evidence.cores * evidence.clip_ms / max(evidence.core_ms_per_clip, 1e-3)))
    possible = ceilings(evidence)
    if wanted > evidence.workers and possible.get("storage", inf) > 1.1 * possible["workers"]:  # what it gives to many at once
        change = f"--loader.workers {wanted} instead of {evidence.workers}: more requests at the same time"
        return Finding("storage", limits, change, "no cores, they wait", {"workers": wanted / evidence.workers})
    limits += ", and do not get more by asking at the same time"
    change = "Copy the dataset to a local disk, or --views.shuffle window, which reads ahead in long requests"
    without = evidence.clip_ms / (evidence.clip_ms - waiting)
    return Finding("storage", limits, change, "disk space, or a shuffle within windows", {"workers": without, "storage": inf})


def transfer(evidence: Evidence) -> Finding | None:
    """Copying to the device takes over 20 % of a step."""
    if evidence.copy_share <= 0.2:
        return None
    change = "Lower --compute.views-per-forward, so that copies run beside the step before them"
    limits = f"The copy to the device: {evidence.copy_share:.0%} of a step"
    return Finding("transfer", limits, change, gain=1 / max(1 - evidence.copy_share, 0.1))


def one_source(evidence: Evidence) -> Finding | None:
    """A source takes 1.5 times its share of the time, a quarter of it at least, and a tenth could be gained."""
    for name, samples, time in sorted(evidence.sources, key=lambda source: -source[2]):
        if samples >= 1 or time < 1.5 * samples or time < 0.25:
            continue
        saved = time - samples * (1 - time) / (1 - samples)  # if its clips cost what the others do
        if saved >= 0.1:
            factor = 1 / (1 - saved)
            limits = f"Source {name!r}: {samples:.0%} of the clips, {time:.0%} of the decoding time"
            change = f"Build {name!r} again as the other sources are (--preset h264-fast, short side 256)"
            return Finding("source", limits, change, "encoding it once", {"cores": factor, "workers": factor})
    return None


def planning(evidence: Evidence) -> Finding | None:
    """The workers are busy less than 85 % of the time though all they can give is asked for: they lack work."""
    if evidence.busy >= BUSY:
        return None
    limits = f"Handing out work: the workers are busy only {evidence.busy:.0%} of the time"
    deep = f"--loader.prefetch {2 * evidence.prefetch} instead of {evidence.prefetch}"
    change = f"{deep}, so that there is always a clip to decode"
    return Finding("planning", limits, change, "memory for each batch", gain=1 / max(evidence.busy, 0.1))


def few_workers(evidence: Evidence) -> Finding | None:
    """There are fewer workers than cores, and all are busy."""
    if evidence.workers >= evidence.cores or evidence.shares_cores:
        return None
    workers = "The worker, which is" if evidence.workers == 1 else f"The {evidence.workers} workers, which are"
    limits, change = f"{workers} always busy: {evidence.cores} cores could decode", f"--loader.workers {evidence.cores}"
    cost = f"{evidence.cores - evidence.workers} more cores decode"
    return Finding("workers", limits, change, cost, {"workers": evidence.cores / evidence.workers})


def all_cores(evidence: Evidence) -> Finding:
    """What is left: every core decodes."""
    total, views = evidence.core_ms_per_clip, evidence.views_per_clip
    limits = f"Decoding, on {evidence.cores} core{'s' * (evidence.cores > 1)}: {total:.1f} core-ms a clip"
    if total:
        stage = max(evidence.core_ms, key=lambda name: evidence.core_ms[name])
        limits += f", {evidence.core_ms[stage] / total:.0%} of it {STAGE_NAMES[stage]}"
    change, more = cheaper_views(evidence)
    if not change or more < WORTH:
        have = ceilings(evidence).get("cores", 1.0)
        wanted = evidence.target or evidence.model or 2 * have
        if evidence.loader and evidence.target:  # what it gives beside everything else that runs here
            have = min(have, evidence.loader)
        cores = max(evidence.cores + 1, ceil(evidence.cores * wanted / have))
        purpose = "for the target" if evidence.target else "to keep this model busy" if evidence.model else "for twice the rate"
        words = f"{cores} cores instead of {evidence.cores}, {purpose} (a clip now serves {views} view{'s' * (views > 1)})"
        change, more = (words, "the cores"), cores / evidence.cores
    return Finding("cores", limits + evidence.proof, *change, {"cores": more, "workers": more})


RULES: tuple[Callable[[Evidence], Finding | None], ...] = (
    *(not_the_data, disturbed, shared_cores, rare_batches, storage),
    *(transfer, one_source, planning, few_workers, all_cores),
)


def cheaper_views(evidence: Evidence) -> tuple[tuple[str, str] | None, float]:
    """What makes a view cheapest to decode -> ((change, cost), factor), or (None, 1)."""
    core, views, total = evidence.core_ms, evidence.views_per_clip, evidence.core_ms_per_clip
    choices: list[tuple[float, str, str]] = []
    # of those that are referred to, half a group of pictures comes before the first wanted frame
    referred = FAST_REFERENCES * (evidence.frames_spanned + FAST_GOP / 2)
    needed = referred + (1 - FAST_REFERENCES) * evidence.frames_kept
    if evidence.frames_decoded > 1.25 * FAST_COST * needed:
        saved = core.get("decode", 0.0) * (1 - FAST_COST * needed / evidence.frames_decoded)
        change = f"Build with --preset h264-fast: a key frame every {FAST_GOP} frames, and three of four that can be left out; "
        change += f"{needed:.0f} instead of {evidence.frames_decoded:.0f} frames decoded a clip"
        choices.append((total / (total - saved), change, "encoding once, 1.3 times the bytes of x264's defaults"))
    if views < REPEATED and total:
        resize = (core.get("resize", 0.0) + core.get("augment", 0.0)) / views  # of a view; the rest serves all of them
        shared = total - resize * views
        change = f"--views.views-per-clip {REPEATED} instead of {views}, the paper's repeated augmentation"
        cost = f"the views of a step come from {REPEATED / views:g} times fewer clips"
        choices.append(((shared / views + resize) / (shared / REPEATED + resize), change, cost))
    if core.get("augment") and not evidence.shares_cores:
        change = "--augment.randaugment-by device, on views instead of whole frames"
        choices.append((total / (total - core["augment"]), change, "the training device's time, and other pixels than PIL's"))
    if not choices:
        return None, 1.0
    factor, change, cost = max(choices)
    return (change, cost), factor


@dataclass(frozen=True, slots=True)
class Verdict:
    """The four lines, and the same for programs."""

    limit: str  # model, disturbed, shared cores, tail, storage, transfer, source, planning, workers, cores
    gain: float  # predicted factor on the run's rate; 1 where data is not the problem
    limits: str
    change: str
    following: str
    sure: str
    told: bool = True  # whether the figures suffice to say it


NOT_SURE = "Not sure: "
LINES = {"limits": "What limits", "change": "The one change", "following": "The next ceiling", "sure": "How sure"}
PERHAPS = {"limits": "It looks like", "change": "The change then", "following": "The next ceiling"}


def verdict_lines(verdict: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A profile's "verdict" -> (title, text), the first of which stands out. Where the figures do not suffice, that is the
    first, and what they look like comes after it."""
    if verdict.get("told", not verdict["sure"].startswith(NOT_SURE)):
        return [(title, verdict[name]) for name, title in LINES.items()]
    again = "Measure again when nothing else runs, for longer: tubecell loader-profile --rounds 5 --seconds 8"
    first = [("What limits", f"Cannot tell: {verdict['sure'].removeprefix(NOT_SURE)}"), ("What to do", again)]
    return [*first, *((title, verdict[name]) for name, title in PERHAPS.items())]


def judge(evidence: Evidence) -> Verdict:
    """The first rule of `RULES` that holds decides what limits; gain and next ceiling follow from the ceilings."""
    finding = next(finding for rule in RULES if (finding := rule(evidence)))
    before = ceilings(evidence)
    after = {name: rate * finding.raises.get(name, 1.0) for name, rate in before.items()}
    if finding.limit == "model":
        after.pop("model", None)  # the next one
    gain = finding.gain
    if gain is None:
        gain = max(1.0, min(after.values()) / min(before.values())) if before else 1.0
    promised = "" if finding.limit == "model" else f"; predicted gain {gain:.2f} ×; cost: {finding.cost}"
    sure = _sure(evidence)
    told = finding.limit == "disturbed" or not sure.startswith(NOT_SURE)
    return Verdict(finding.limit, gain, finding.limits, finding.change + promised, _following(after), sure, told)


def _following(after: Mapping[str, float]) -> str:
    ordered = sorted((rate, name) for name, rate in after.items() if rate < float("inf"))
    if not ordered:
        return "Not known: nothing else was measured"
    first, *rest = (f"{CEILINGS[name]} at {rate:,.0f} views/s" for rate, name in ordered)
    return first[0].upper() + first[1:] + (f", then {rest[0]}" if rest else "")


def _sure(evidence: Evidence) -> str:
    """What speaks against the figures; one thing is a doubt, two are too many, and so are other programs alone."""
    doubts = []
    if evidence.neighbours > DISTURBED * evidence.cores:
        doubts.append(f"other programs had {evidence.neighbours:.1f} of the {evidence.cores} cores meanwhile")
    if evidence.spread > 0.15:
        doubts.append(f"rates of the same thing differ by {evidence.spread:.0%} between rounds")
    if evidence.clips < 200:
        doubts.append(f"only {evidence.clips} clips were decoded")
    able = [rate for name, rate in ceilings(evidence).items() if name in ("cores", "workers", "planning")]
    if evidence.loader and able and not 0.8 < evidence.loader / min(able) < 1.25:
        doubts.append(f"the stages add up to {min(able):,.0f} views/s, and the loader alone gave {evidence.loader:,.0f}")
    if evidence.headroom and evidence.together and evidence.shares_cores and evidence.wait_share < PROVEN:
        explained = 1 / max(1 - evidence.decoding, 0.1)
        if evidence.headroom > 1.25 * explained:
            doubts.append(
                f"decoding explains {explained:.2f} × of the {evidence.headroom:.2f} × that batches from memory bring"
            )
    if evidence.headroom and evidence.headroom < 0.9:
        doubts.append("the run is faster than with batches from memory, which cannot be: one of them was disturbed")
    if evidence.cached is None:
        doubts.append("no batches from memory were tried" if evidence.together else "no model ran beside the loader")
    if doubts:
        too_many = len(doubts) > 1 or evidence.neighbours > DISTURBED * evidence.cores
        return f"{NOT_SURE if too_many else 'Fairly sure, but '}{'; '.join(doubts)}"
    return f"Sure: shown with batches from memory, {evidence.clips:,} clips, rounds within {evidence.spread:.0%}, quiet machine"
