"""What `--plan` prints: what would be read, taken, cut, dropped and written, beside the paper's Table 8."""

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from dataset_builders.building.request import Build
from dataset_builders.pages.counts import count_labels, counted
from dataset_builders.paper import TABLE_8
from dataset_builders.plan import Plan


def describe(plan: Plan, build: Build) -> str:
    """The plan as text, a block per source and the totals."""
    kinds = {source.name: source.kind for source in build.sources}
    clips = {name: plan.num_clips(name) for name in plan.parts}
    together = sum(clips.values())
    lines = []
    table = ["", f"{'source':<14} {'files':>10} {'clips':>10} {'share':>7} {'paper, Table 8':>15}"]
    for name, part in plan.parts.items():
        requests = plan.requests.filter(pc.equal(plan.requests["source"], name))
        lines += [f"{name} ({kinds[name]})", *_source(requests, part.counts, plan.dropped, name, build.encoding.max_seconds)]
        lines += [f"  note: {note}" for note in part.notes]
        of_all = f"{clips[name] / together:.1%}" if together else ""
        paper = f"{TABLE_8[kinds[name]]:,}" if kinds[name] in TABLE_8 else ""
        table.append(f"{name:<14} {len(requests):>10,} {clips[name]:>10,} {of_all:>7} {paper:>15}")
    table.append(f"{'together':<14} {len(plan.requests):>10,} {together:>10,} {'':>7} {sum(TABLE_8.values()):>15,}")
    shards = sum(-(-number // build.clips_per_shard) for number in clips.values())
    about = f"would write about {shards:,} shards of up to {build.clips_per_shard} clips to {build.place}; nothing was written"
    return "\n".join([*lines, *table, "", about])


def _source(requests: pa.Table, counts: Mapping[str, int], dropped: pa.Table, name: str, max_seconds: float) -> list[str]:
    lines = [f"  {what:<48} {number:>10,}" for what, number in counts.items() if number]
    reasons = counted(dropped["reason"].filter(pc.equal(dropped["source"], name)))
    lines += [f"  {'not asked for: ' + reason:<48} {number:>10,}" for reason, number in reasons.items()]
    lines.append(f"  {'asked for':<48} {len(requests):>10,}")
    labels = count_labels(requests)
    for split in dict.fromkeys(split for split, _ in labels):
        lines.append(f"  {f'classes of these, {split}':<48} {sum(of == split for of, _ in labels):>10,}")
    cut = requests.filter(pc.greater(requests["clips"], 1))
    if len(cut):
        lines.append(f"  {'of these to be cut':<48} {len(cut):>10,} into {pc.sum(cut['clips']).as_py():,} clips")
    known = pc.coalesce(requests["seconds"], pc.subtract(requests["end"], requests["start"]))
    if seconds := pc.sum(known).as_py():
        lines.append(f"  {'hours, as far as the lists say':<48} {seconds / 3600:>10,.1f}")
    if known.null_count:
        lines.append(f"  {'of unknown length until read':<48} {known.null_count:>10,} (longer than {max_seconds:g} s are cut)")
    return lines
