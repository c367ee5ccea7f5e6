"""What limits a run, what to change and what that brings: the first rule of limits.py that holds, and what follows."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.report.limits import CEILINGS, DISTURBED, PROVEN, RULES, Evidence, ceilings


@dataclass(frozen=True, slots=True)
class Verdict:
    """The four lines, and the same for programs."""

    limit: str  # model, disturbed, shared cores, tail, storage, transfer, source, planning, workers, cores
    gain: float  # predicted factor on the run's rate; 1 where data is not the problem
    limits: str
    change: str
    following: str
    sure: str


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
    return Verdict(finding.limit, gain, finding.limits, finding.change + promised, _following(after), _sure(evidence))


def _following(after: Mapping[str, float]) -> str:
    ordered = sorted((rate, name) for name, rate in after.items() if rate < float("inf"))
    if not ordered:
        return "Not known: nothing else was measured"
    first, *rest = (f"{CEILINGS[name]} at {rate:,.0f} views/s" for rate, name in ordered)
    return first[0].upper() + first[1:] + (f", then {rest[0]}" if rest else "")


def _sure(evidence: Evidence) -> str:
    """What speaks against the figures; one thing is a doubt, two are too many."""
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
        return f"{'Fairly sure, but' if len(doubts) == 1 else 'Not sure:'} {'; '.join(doubts)}"
    return f"Sure: shown with batches from memory, {evidence.clips:,} clips, rounds within {evidence.spread:.0%}, quiet machine"
