"""A rehearsal on a terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

GIB = 2**30


def told(found: Mapping[str, Any]) -> Iterator[str]:
    """Its lines."""
    yield (
        f"{found['recipe']} on {found['cluster']}: {found['parameters']:,} parameters, {found['views a step']:,} views a step, "
        f"{found['TFLOP a view']:.3g} TFLOP a view; {found['machine']}"
    )
    yield from assumptions(found)
    yield ""
    head = ("mesh", "GiB", "formula", "sent GB", "step ms", "compute", "exposed", "host", "views/s", "eff.", "hours", "ETTR")
    yield f"{head[0]:<22}" + "".join(f"{each:>9}" for each in head[1:])
    for mesh in found["meshes"]:
        step, memory = mesh["step"], mesh["memory"]
        cells = (
            f"{memory['peak of tensors, rehearsed'] / GIB:.2f}",
            f"{memory['the closed form'] / GIB:.2f}",
            f"{sum(each['sent'] for each in mesh['collectives']) / 1e9:.2f}",
            f"{1e3 * step['total']:.0f}",
            f"{1e3 * step['compute']:.0f}",
            f"{1e3 * step['exposed']:.0f}",
            f"{1e3 * step['host']:.0f}",
            f"{mesh['views/s']:,.0f}",
            f"{mesh['efficiency']:.0%}",
            f"{mesh['run']['hours']:.1f}",
            f"{mesh['ettr']['at the best interval']['share']:.2%}",
        )
        yield f"{mesh['mesh']:<22}" + "".join(f"{cell:>9}" for cell in cells)
    yield ""
    for mesh in found["meshes"]:
        yield f"{mesh['mesh']}: {mesh['plan']}"
        for each in mesh["collectives"]:
            yield (
                f"  {each['number']:>5} x {each['kind']:<15} {each['ranks']:>5} ranks on {each['nodes']:>3} nodes "
                f"{each['bytes'] / 1e9:>10.3f} GB whole {each['sent'] / 1e9:>10.3f} GB sent by a rank"
            )
        saved, useful = mesh["checkpoint"], mesh["ettr"]["at the best interval"]
        yield (
            f"  checkpoint {saved['whole'] / 1e9:.2f} GB, a rank stages {saved['staged by a rank'] / 1e9:.3f} GB in "
            f"{saved['seconds of the copy']:.2f} s, written in {saved['seconds of writing']:.1f} s; a failure every "
            f"{mesh['mtbf_hours']:.1f} h, {useful['share']:.2%} useful with one every {useful['seconds']:.0f} s"
        )
    for name, rows in found["scaling"].items():
        yield f"the same batch on fewer nodes, {name}:"
        for row in rows:
            yield f"  {row['GPUs']:>5.0f} GPUs {row['views/s']:>10,.0f} views/s computing {row['efficiency']:>4.0%} of it"
    for clips, data in found["data"].items():
        yield from told_data(int(clips), data)


def assumptions(found: Mapping[str, Any]) -> Iterator[str]:
    """What nobody measured."""
    for name, values in found["assumed"].items():
        yield f"assumed, {name}: " + ", ".join(f"{key} {value:g}" for key, value in values.items())
    yield "assumed: collectives reach these rates whatever their size, all ranks are as fast, data are never waited for"


def told_data(clips: int, data: Mapping[str, Any]) -> Iterator[str]:
    """What sampling costs."""
    written, cache = data["written"], data["cache"]
    yield (
        f"{clips:,} clips: manifest of {data['bytes of the manifest'] / 1e6:,.0f} MB in {written['cpu_seconds']:.1f} CPU s, "
        f"its cache in {cache['cpu_seconds']:.1f} CPU s; at most {cache['peak'] / GIB:.2f} GiB"
    )
    for shuffle in ("global", "window"):
        each = data[shuffle]
        opened = each["open"]["seconds"] + each["sampler"]["seconds"]
        drawn, resumed = each["a step of the node's ranks"]["seconds"], each["resume in mid-epoch"]["seconds"]
        yield (
            f"  {shuffle}: opened in {opened:.3f} s, a step of the node's ranks {drawn:.3f} s, resumed in {resumed:.3f} s; "
            f"{each['of a node'] / GIB:.2f} GiB a node beside the mapped columns ({each['mapped'] / GIB:.2f} GiB on disk)"
        )
        yield (
            f"    {each['GETs of a node and epoch']:,.0f} GETs, {each['bytes of a node and epoch'] / 1e9:,.0f} GB a node and "
            f"epoch; the fullest rank has {each['bytes of the fullest rank by the mean']:.3f} x the mean's bytes"
        )
