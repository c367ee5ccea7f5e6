"""The sections of a loader's report, each a piece of HTML made of a profile (see `loader_report`)."""

import shlex
from collections.abc import Mapping
from typing import Any

from pipeline.report.charts import bars, curve, gantt, legend, pair, shown, stack, table
from pipeline.report.limits import STAGE_NAMES
from pipeline.stage_meters import STAGES

Profile = Mapping[str, Any]
# frames/s of an NVDEC engine: 21,890 frames/s on eight H100 of seven engines each, the best that is published (SPDL, 2026)
NVDEC_FRAMES = 21_890 / 56
RATES = {
    "loader": "loader alone",
    "model": "model alone",
    "cached": "model and batches from memory",
    "together": "model and loader together",
}
LANES = {**STAGE_NAMES, "wait": "waits for a batch", "step": "training step"}
POINTS = ("mean", "p50", "p90", "p99", "p99.9")


def verdict(profile: Profile) -> str:
    found, wanted = profile["verdict"], profile["target"]
    lines = [
        ("What limits", found["limits"]),
        ("The one change", found["change"]),
        ("The next ceiling", found["following"]),
        ("How sure", found["sure"]),
    ]
    terms = "".join(f"<dt>{name}</dt><dd>{shown(text)}</dd>" for name, text in lines)
    missed = wanted and not wanted["met"]
    return f'<section class="verdict{" missed" if missed else ""}"><dl>{terms}</dl></section>'


def proof(profile: Profile) -> str:
    """Loader alone, model alone, both, and batches from memory."""
    rates = profile["rates"]
    items = [
        (title, rates[name]["median"], _rate(rates[name]["median"]), _rounds(rates[name]["rounds"]))
        for name, title in RATES.items()
        if name in rates
    ]
    if reason := profile["settings"].get("no_model"):
        note = f"The model was not run: {shown(reason)}."
    elif "cached" in rates:
        more = rates["cached"]["median"] / rates["together"]["median"] - 1
        note = (
            f"Batches from memory cost the loader nothing: {max(0.0, more):.1%} more is all that a faster loader could bring "
            "to this run. It waited for data " + f"{profile['run']['batches']['wait_share']:.1%} of its time."
        )
    else:
        share = profile["figures"]["batches"]["wait_share"] or 0.0
        note = f"The run waited for data {share:.1%} of its time; what stands for the model alone is its rate without that."
        if "model" not in rates:
            note = f"The run waited for data {share:.1%} of its time. `tubecell loader-profile` tries the parts alone."
    note = f'<p class="note">views/s, the median of the rounds. {note}</p>'
    return f"<section><h2>Is data the problem?</h2>{bars(items)}{note}</section>"


def _rounds(values: list[float]) -> str:
    return f"{_rate(min(values))} to {_rate(max(values))}" if len(values) > 1 else ""


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def stages(profile: Profile) -> str:
    figures = profile["figures"]
    lines = figures["stages"]
    bar = stack([(STAGE_NAMES[line["name"]], line["core_ms"], f"b-{line['name']}") for line in lines])
    rows = [
        (
            f'<span class="dot b-{line["name"]}"></span>{STAGE_NAMES[line["name"]]}',
            f"{line['core_ms']:.2f}",
            f"{line['share']:.0%}",
            *(_ms(line["ms"][name]) for name in POINTS),
        )
        for line in lines
    ]
    whole = figures["clip_ms"]
    rows.append(("a clip", f"{figures['core_ms']:.2f}", "100%", *(_ms(whole[name]) for name in POINTS)))
    waited, copied = (profile["run"] or figures)["batches"]["wait_ms"], (profile["run"] or figures)["batches"]["copy_ms"]
    for name, values in (("a batch: copy to the device", copied), ("a batch: the trainer waits", waited)):
        if values:
            rows.append((name, "", "", *(_ms(values[point]) for point in POINTS)))
    head = ("stage", "core-ms a clip", "share", "mean ms", "P50", "P90", "P99", "P99.9")
    starved = figures["work_per_core"]
    note = (
        f"{figures['clips']:,} clips, {figures['views_per_clip']} views each. core-ms: a core works so long at it; the other "
        f"columns: so much time passes. Workers had a core {min(1.0, 1 / starved):.0%} of their working time."
    )
    return f'<section><h2>Where a clip’s time goes</h2>{bar}{table(head, rows)}<p class="note">{note}</p></section>'


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def alone(profile: Profile) -> str:
    """Each stage alone, by concurrency."""
    measured = profile["stages_alone"]
    if not measured:
        return ""
    workers, cores = measured["workers"], profile["settings"]["cores"]
    rows = []
    for name, rates in measured["clips_per_s"].items():
        best = max(rates)
        grown = rates[workers.index(cores)] / rates[0]
        quiet = profile["settings"].get("neighbours", 0.0) <= 0.1 * cores
        low = ' class="low"' if cores > 1 and grown < 0.6 * cores and quiet else ""
        cells = (f"<b>{rate:,.0f}</b>" if rate == best else f"{rate:,.0f}" for rate in rates)
        rows.append((_alone_name(name), *cells, f"<span{low}>{grown:.2f} ×</span>"))
    head = ("clips/s", *(f"{n} worker{'s' * (n > 1)}" for n in workers), f"{cores} cores against 1")
    note = (
        "What a stage could do if nothing else were to be done. One that does not grow with the workers waits for the storage, "
        "the memory or a core. Decoding includes opening the file; reading is from the page cache where it was not dropped."
    )
    return f'<section><h2>Each stage alone</h2>{table(head, rows)}<p class="note">{note}</p></section>'


def _alone_name(name: str) -> str:
    return {"fetch, cold": "reading, page cache dropped", "all but fetch": "all but reading"}.get(name) or STAGE_NAMES[name]


def over_time(profile: Profile) -> str:
    """Queue and workers."""
    figures = profile["run"] or profile["figures"]
    queue, prefetch = figures["queue"], profile["settings"]["prefetch"]
    whose = "training" if profile["run"] else "the loader alone, which is asked for all it can give"
    drawn = figures["gantt"]
    names = [*STAGES, "plan", "wait", "step"]
    hidden = drawn["workers"] - sum(lane["name"].startswith("worker") for lane in drawn["lanes"])
    more = f" {hidden} more workers are not drawn." if hidden > 0 else ""
    return (
        f"<section><h2>Over time</h2><h3>Batches that lie ready when the trainer asks for one, of {prefetch}</h3>"
        f"{curve(queue['seconds'], queue['ready'], prefetch, 'batches ready over time')}"
        f'<p class="note">During {whose}. None was ready {queue["empty_share"]:.0%} of the times, {queue["mean"]:.1f} on '
        "average.</p>"
        f"<h3>The last {drawn['ms'] / 1e3:.1f} seconds</h3>{gantt(drawn, LANES)}"
        f"{legend([(LANES[name], f'b-{name}') for name in names])}"
        f'<p class="note">Stages of a clip are drawn one after the other; in truth some take turns.{more}</p>'
        "</section>"
    )


def used(profile: Profile) -> str:
    """Frames decoded against kept, bytes read against used."""
    frames, sizes = profile["figures"]["frames"], profile["figures"]["bytes"]
    before = max(0.0, frames["decoded"] - frames["spanned"])
    between = frames["decoded"] - frames["kept"] - before
    frame_bar = stack(
        [
            ("kept", frames["kept"], "b-decode"),
            ("between the wanted ones", between, "b-rest"),
            ("before the first wanted one, from the key frame on", before, "b-fetch"),
        ]
    )
    byte_bar = stack(
        [("given to the decoder", sizes["used"], "b-decode"), ("not used", sizes["read"] - sizes["used"], "b-rest")]
    )
    frame_legend = legend(
        [("kept", "b-decode"), ("decoded between them", "b-rest"), ("decoded before them, from the key frame on", "b-fetch")]
    )
    return (
        '<section><h2>What is decoded and read in vain</h2><div class="two">'
        f"<div><h3>{frames['decoded']:.0f} frames decoded a clip, {frames['kept']:.0f} kept</h3>{frame_bar}{frame_legend}</div>"
        f"<div><h3>{sizes['read'] / 1e3:,.0f} kB read a clip, {sizes['used'] / 1e3:,.0f} used</h3>{byte_bar}"
        f"{legend([('given to the decoder', 'b-decode'), ('read with the clip, not used', 'b-rest')])}</div></div></section>"
    )


def groups(profile: Profile) -> str:
    """Shares of samples and of time."""
    blocks = []
    for title, lines in profile["figures"]["groups"].items():
        rows = [
            (
                shown(line["name"]),
                f"{line['samples']:.1%}",
                f"{line['time']:.1%}",
                f"{line['time'] / line['samples']:.2f} ×",
                f"{line['ms']:.1f}",
                f'<div class="pair" style="width:100%">{pair(line["samples"], line["time"])}</div>',
            )
            for line in lines
        ]
        head = (title, "of samples", "of time", "time / samples", "ms a clip", "samples (grey), time (blue)")
        blocks.append(table(head, rows, css="numbers shares"))
    return f"<section><h2>Who takes the decoding time</h2>{'<br>'.join(blocks)}</section>"


def slowest(profile: Profile) -> str:
    """With a command each."""
    recipe, rows, commands = profile["recipe"], [], []
    base = f"tubecell loader-profile --data {shlex.quote(profile['dataset']['path'])}"
    flags = f"--views.views-per-clip {recipe['views_per_clip']} --model.input-size {recipe['input_size']}"
    flags += f" --model.num-frames {recipe['num_frames']}"
    for line in profile["figures"]["slowest"]:
        stage = max(line["stages"], key=lambda name: line["stages"][name])
        frames = f" --frames {line['frames']}" if line["frames"] else ""
        commands.append(f"{base} --replay {shlex.quote(line['key'])}{frames} {flags}")
        rows.append(
            (
                f"<code>{shown(line['key'])}</code>",
                f"{line['ms']:.1f}",
                f"{line['times_typical']:.1f} ×",
                f"{line['core_ms']:.1f}",
                f"{STAGE_NAMES[stage]}, {line['stages'][stage]:.0f} ms",
                f"{line['frames_decoded']}",
                f"{line['bytes'] / 1e3:,.0f}",
                shown(line["what"]),
            )
        )
    head = ("key", "ms", "of the median", "on a core", "longest stage", "frames decoded", "kB", "video")
    listed = "\n".join(map(shown, commands))
    return (
        f"<section><h2>The slowest clips</h2>{table(head, rows, css='numbers slow')}"
        "<details><summary>Commands that decode them again, one at a time and stage by stage</summary>"
        f"<pre>{listed}</pre></details>"
        '<p class="note">One that took long, but not on a core, had to wait: for a core or for its bytes.</p></section>'
    )


def failures(profile: Profile) -> str:
    found = profile["figures"]["failures"]
    if not found["attempts"]:
        return "<section><h2>Failures</h2><p>None: every clip was decoded.</p></section>"
    rows = [(shown(c["key"]), shown(c["reason"]), str(c["times"]), shown(c["detail"])) for c in found["clips"]]
    note = (
        f"{found['attempts']} attempts failed since the loader's start and were replaced by other clips; those of the clips "
        f"above took {found['lost_ms']:,.0f} ms."
    )
    return (
        f"<section><h2>Failures</h2>{table(('key', 'reason', 'times', 'what was said'), rows, css='failures')}"
        f'<p class="note">{note}</p></section>'
    )


def target(profile: Profile) -> str:
    wanted = profile["target"]
    if not wanted:
        return ""
    met = "is met" if wanted["met"] else "is missed"
    others = profile["settings"].get("neighbours", 0.0)
    busy = f", of which other programs used {others:.1f}" if others >= 0.05 else ""
    rows = [
        ("cores that decode", f"{wanted['cores']:.1f}", f"{profile['settings']['cores']} here{busy}"),
        ("or NVDEC engines", f"{wanted['nvdec_engines']:.1f}", f"at {NVDEC_FRAMES:.0f} frames/s each, the best published"),
        ("MB/s from storage", f"{wanted['mb_per_s']:.1f}", "clips as they are read"),
        ("frames/s decoded", f"{wanted['frames_per_s']:,.0f}", ""),
        ("clips/s", f"{wanted['clips_per_s']:,.1f}", ""),
    ]
    return (
        f"<section><h2>The target: {wanted['views_per_s']:,.0f} views/s {met}, the loader gives {wanted['have']:,.0f}</h2>"
        f"{table(('it takes', '', ''), rows, css='numbers needs')}</section>"
    )


def setting(profile: Profile) -> str:
    dataset, settings, recipe = profile["dataset"], profile["settings"], profile["recipe"]
    rows = [
        ("measured with", profile["title"]),
        (
            "dataset",
            f"{dataset['path']}: {dataset['clips']:,} clips, version {dataset['version']}, {dataset['fingerprint'][:8]}",
        ),
        (
            "loader",
            f"{settings['decoder']}, {settings['workers']} workers on {settings['cores']} cores, {settings['clips_per_batch']} "
            f"clips a batch, {settings['prefetch']} batches ahead, to {settings['device']}",
        ),
        (
            "views",
            f"{recipe['views_per_clip']} a clip, {recipe['num_frames']} frames of {recipe['input_size']} px, crops "
            f"{recipe['crop']}, order {recipe['shuffle']}",
        ),
    ]
    if tuning := settings.get("tuning"):
        rows.append(("what the loader came to", tuning))
    if (cost := settings.get("cost_of_the_report")) is not None:
        rows.append(("cost of this report", f"{cost:.2%} of the run's time so far"))
    if first := settings.get("first_batch_s"):
        rows.append(("first batch", f"after {first:.1f} s"))
    limits = ", ".join(f"{name} {rate:,.0f}" for name, rate in sorted(profile["ceilings"].items(), key=lambda item: item[1]))
    rows.append(("ceilings, views/s", limits))
    cells = [(name, shown(text)) for name, text in rows]
    return f"<section><h2>How it was measured</h2>{table(('', ''), cells, css='setting')}</section>"
