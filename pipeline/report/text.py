"""A loader's profile as text: a terminal's summary, and two profiles side by side."""

from collections.abc import Mapping
from typing import Any

from pipeline.report.sections import RATES
from pipeline.report.verdict import STAGE_NAMES, verdict_lines


def four_lines(profile: Mapping[str, Any]) -> list[str]:
    """The verdict, or why there is none."""
    return [f"{title:<18}{text}" for title, text in verdict_lines(profile["verdict"])]


def summary(profile: Mapping[str, Any]) -> str:
    """The four lines, rates and stages, and the target."""
    figures = profile["figures"]
    lines = [*four_lines(profile), "", *(f"{title:<31}{rate:>9,.1f} views/s" for title, rate in _medians(profile).items())]
    if profile["run"] and (waited := profile["run"]["batches"]["wait_share"]) is not None:  # None: too short to tell
        lines.append(f"{'waiting for data':<31}{waited:>9.1%} of the time")
    lines += ["", f"{'stage':<34}{'core-ms':>9}{'P50 ms':>9}{'P99 ms':>9}"]
    for stage in figures["stages"]:
        lines.append(_timed(STAGE_NAMES[stage["name"]], stage["core_ms"], stage["ms"]))
    lines.append(_timed("a clip", figures["core_ms"], figures["clip_ms"]))
    frames, sizes = figures["frames"], figures["bytes"]
    lines += [
        "",
        f"{frames['decoded']:.0f} frames decoded a clip for {frames['kept']:.0f}; {sizes['read'] / 1e3:,.0f} kB read, "
        f"{sizes['used'] / 1e3:,.0f} used; {figures['failures']['attempts']} failed attempts, {figures['restarts']} decoded "
        "once more",
    ]
    if wanted := profile["target"]:
        lines.append(
            f"target {wanted['views_per_s']:,.0f} views/s: {'met' if wanted['met'] else 'MISSED'}, the loader gives "
            f"{wanted['have']:,.0f}; it takes {wanted['cores']:.1f} cores or {wanted['nvdec_engines']:.1f} NVDEC engines, "
            f"{wanted['mb_per_s']:.1f} MB/s"
        )
    return "\n".join(lines)


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Every figure of two profiles with their ratio; what differs in how they were measured comes first."""
    lines = [f"{'':<40}{'A':>14}{'B':>14}{'B / A':>9}"]
    one, other = _flat(before), _flat(after)
    lines += [
        f"{name:<40}{_told(one.get(name)):>14}{_told(other.get(name)):>14}{_ratio(one.get(name), other.get(name)):>9}"
        for name in {**one, **other}
    ]
    differing = [
        f"{part}.{name}: {before[part].get(name)} in A, {after[part].get(name)} in B"
        for part in ("dataset", "recipe", "settings")
        for name in {**before[part], **after[part]}
        if name not in ("path", "first_batch_s", "neighbours") and before[part].get(name) != after[part].get(name)
    ]
    if before["machine"] != after["machine"]:
        differing.insert(0, f"machine: {before['machine']} in A, {after['machine']} in B")
    verdicts = [f"{side}: {verdict_lines(profile['verdict'])[0][1]}" for side, profile in (("A", before), ("B", after))]
    return "\n".join(
        [*verdicts, "", *(["measured differently: ", *(f"  {line}" for line in differing), ""] if differing else []), *lines]
    )


def _timed(name: str, core_ms: float, ms: Mapping[str, float]) -> str:
    return f"{name:<34}{core_ms:>9.2f}{ms['p50']:>9.2f}{ms['p99']:>9.2f}"


def _medians(profile: Mapping[str, Any]) -> dict[str, float]:
    return {title: profile["rates"][name]["median"] for name, title in RATES.items() if name in profile["rates"]}


def _flat(profile: Mapping[str, Any]) -> dict[str, float]:
    """name -> figure."""
    figures, frames, whole = profile["figures"], profile["figures"]["frames"], profile["figures"]["clip_ms"]
    found = {f"{title}, views/s": rate for title, rate in _medians(profile).items()}
    if profile["run"]:
        found["waiting for data, share"] = profile["run"]["batches"]["wait_share"]
    for stage in figures["stages"]:
        found[f"{STAGE_NAMES[stage['name']]}, core-ms"] = stage["core_ms"]
    found |= {"a clip, core-ms": figures["core_ms"], "a clip, P50 ms": whole["p50"], "a clip, P99 ms": whole["p99"]}
    found |= {"frames decoded a clip": frames["decoded"], "frames kept": frames["kept"]}
    found |= {"kB read a clip": figures["bytes"]["read"] / 1e3, "failed attempts": float(figures["failures"]["attempts"])}
    found["decoded once more"] = float(figures.get("restarts", 0))  # not in older profiles
    return found


def _told(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _ratio(before: float | None, after: float | None) -> str:
    return f"{after / before:.2f}" if before and after is not None else "–"
