import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markupsafe import escape

from pipeline.decoding.decode import Failure
from pipeline.report.figures import figures, parsed, percentiles, shares, spelled
from pipeline.report.loader_page import assemble, page, write_report
from pipeline.report.text import comparison, summary
from pipeline.report.verdict import RULES, Evidence, ceilings, judge, verdict_lines
from pipeline.sampling import SamplingRecipe, sample_clips
from pipeline.stage_meters import RECORD, BatchMeter, StageMeters
from pipeline.storage.manifest import Manifest
from pipeline.workers.delivery import FailedClip
from tests.manifest_rows import row, write_rows
from tests.page_reader import Page

MS = 1_000_000
STAGE_MS = {"fetch": 0.5, "demux": 1.0, "decode": 7.0, "colour": 1.0, "resize": 2.0}
CORE = {"plan": 0.1, **STAGE_MS}
TWICE = {stage: 2 * ms for stage, ms in CORE.items()}
# two cores that decode for a GPU: 11.6 core-ms a clip of four views, 690 views/s
USUAL: dict[str, Any] = {
    "views_per_clip": 4,
    "cores": 2,
    "workers": 2,
    "core_ms": CORE,
    "wall_ms": CORE,
    "frames_decoded": 32.0,
    "frames_spanned": 61.0,
    "frames_kept": 16.0,
    "fetch_rate": 5000.0,
    "loader": 690.0,
    "batches": 100,
    "seconds_per_batch": 0.1,
}
WAITS = {"together": 650.0, "model": 1300.0, "cached": 1290.0, "wait_share": 0.5, "worst_share": 0.1, "longest_wait": 0.1}


def evidence(**changes: Any) -> Evidence:
    return Evidence(**{**USUAL, **changes})


@pytest.mark.parametrize(
    ("limit", "changes", "words", "gain"),
    [
        (
            "model",
            {"together": 300.0, "model": 305.0, "cached": 304.0, "wait_share": 0.004},
            "batches from memory bring 1.3%",
            1,
        ),
        ("model", {"together": 300.0, "wait_share": 0.01}, "no batches from memory were tried", 1),
        ("disturbed", {**WAITS, "work_per_core": 2.0, "wall_ms": TWICE}, "wait for one 50%", 690 / 348),
        ("disturbed", {"neighbours": 1.0, "wall_ms": TWICE}, "Other programs have 1.0 of the 2 cores", 690 / 348),
        ("shared cores", {**WAITS, "shares_cores": True, "wait_share": 0.0, "together": 300.0, "model": 600.0}, "take", None),
        ("tail", {**WAITS, "wait_share": 0.2, "worst_share": 0.9, "longest_wait": 0.75}, "--loader.prefetch 11 ", 1 / 0.82),
        ("storage", {**WAITS, "wall_ms": {**CORE, "fetch": 30.0}}, "--loader.workers 8 ", 690 / (4000 * 2 / 41)),
        (
            "storage",
            {**WAITS, "wall_ms": {**CORE, "fetch": 30.0}, "fetch_rate": 50.0},
            "Copy the dataset to a local disk",
            None,
        ),
        ("transfer", {**WAITS, "copy_share": 0.5}, "--compute.views-per-forward", 2),
        ("source", {**WAITS, "sources": [("phone", 0.1, 0.6), ("k710", 0.9, 0.4)]}, "'phone': 10% of the clips, 60%", None),
        ("planning", {**WAITS, "busy": 0.5}, "--loader.prefetch 6 ", 2),
        ("workers", {**WAITS, "cores": 4, "wall_ms": CORE}, "--loader.workers 4", 1300 / (2000 * 4 / 11.5)),
        ("cores", {**WAITS, "frames_decoded": 150.0}, "--preset h264-fast", 1 / (1 - 7 * (1 - 1.6 * 31.25 / 150) / 11.6)),
        ("cores", WAITS, "4 cores instead of 2, to keep this model busy", 1300 / (2000 * 4 / 11.6)),
        ("cores", {**WAITS, "views_per_clip": 1, "model": 2000.0}, "--views.views-per-clip 4", (11.6) / (9.6 / 4 + 2)),
        ("cores", {}, "4 cores instead of 2, for twice the rate", 2),
    ],
)
def test_the_verdict_follows_from_the_numbers(limit: str, changes: dict[str, Any], words: str, gain: float | None) -> None:
    verdict = judge(evidence(**changes))
    assert verdict.limit == limit
    assert words in f"{verdict.limits} {verdict.change}"
    if gain is not None:
        assert verdict.gain == pytest.approx(gain, rel=0.03)
    assert verdict.gain >= 1
    assert ("predicted gain" in verdict.change) == (limit != "model")
    assert "views/s" in verdict.following


def test_every_rule_has_a_docstring_and_a_case() -> None:
    assert all(rule.__doc__ for rule in RULES)
    assert len(RULES) == 10


def test_a_gain_ends_at_the_next_ceiling() -> None:
    """Twice the cores bring 1.1 × where the model can only take 1.1 times as much, and the next ceiling is named."""
    verdict = judge(evidence(**{**WAITS, "model": 760.0, "cached": 750.0, "together": 600.0}))
    assert verdict.limit == "cores"
    assert verdict.gain == pytest.approx(760 / 690, rel=0.02)
    assert verdict.following.startswith("The model at 760 views/s")


def test_ceilings() -> None:
    found = ceilings(evidence(model=1000.0))
    assert found == {
        "cores": pytest.approx(4000 * 2 / 11.6),
        "workers": pytest.approx(4000 * 2 / 11.5),
        "planning": pytest.approx(40_000),
        "storage": 20_000,
        "model": 1000,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "Sure: "),
        ({"neighbours": 0.4}, "Not sure: other programs had 0.4 of the 2 cores"),
        ({"cached": 500.0}, "faster than with batches from memory, which cannot be"),
        ({"spread": 0.5, "clips": 20}, "Not sure: rates of the same thing differ by 50% between rounds; only 20 clips"),
        ({"loader": 200.0}, "the stages add up to 690 views/s, and the loader alone gave 200"),
        ({"cached": None}, "no batches from memory were tried"),
        (
            {"shares_cores": True, "wait_share": 0.0, "together": 100.0, "cached": 200.0, "model": 200.0},
            "decoding explains 1.17 × of the 2.00 ×",
        ),
    ],
)
def test_doubts_are_said(changes: dict[str, Any], words: str) -> None:
    assert words in judge(evidence(**{**WAITS, **changes})).sure


@pytest.mark.parametrize(
    ("changes", "first", "told"),
    [
        ({}, "Decoding, on 2 cores", True),
        ({"cached": None}, "Decoding, on 2 cores", True),  # one doubt
        ({"neighbours": 0.4}, "Cannot tell: other programs had 0.4", False),
        ({"spread": 0.5, "clips": 20}, "Cannot tell: rates of the same thing differ by 50%", False),
        ({"neighbours": 1.5, "spread": 0.5}, "Other programs have 1.5 of the 2 cores", True),  # which is what there is to tell
    ],
)
def test_nothing_is_said_for_certain_that_cannot_be_told(changes: dict[str, Any], first: str, told: bool) -> None:
    verdict = judge(evidence(**{**WAITS, **changes}))
    lines = verdict_lines(asdict(verdict))
    assert lines[0][0] == "What limits" and lines[0][1].startswith(first) and verdict.told == told
    older = {name: value for name, value in asdict(verdict).items() if name != "told"}
    if verdict.limit != "disturbed":
        assert verdict_lines(older) == lines
    if not told:
        assert (lines[1][0], lines[2]) == ("What to do", ("It looks like", verdict.limits))


def test_frames_are_spelled_and_parsed() -> None:
    for frames, text in (([3, 7, 11], "3:12:4"), ([5], "5"), ([1, 2], "1,2"), ([0, 4, 9], "0,4,9")):
        assert spelled(frames) == text
        assert parsed(text) == frames
    assert parsed("4:7") == [4, 5, 6]
    for wrong in ("", "a", "1:2:3:4", "5:5", "-1,3"):
        with pytest.raises(ValueError, match="give numbers, as 3,7,11, or first:end:step"):
            parsed(wrong)


def test_shares_add_up_and_the_largest_time_is_first() -> None:
    lines = shares(np.array([0, 1, 1, 1]), np.array([70.0, 10.0, 10.0, 10.0]), lambda kind: "ab"[kind])
    assert [(line["name"], line["samples"], line["time"], line["ms"]) for line in lines] == [
        ("a", 0.25, 0.7, 70.0),
        ("b", 0.75, 0.3, 10.0),
    ]
    many = shares(np.arange(40), np.ones(40), str)
    assert len(many) == 13 and many[-1]["name"] == "28 others" and many[-1]["clips"] == 28


def test_percentiles() -> None:
    found = percentiles(np.arange(1001.0))
    assert found == pytest.approx({"mean": 500, "p50": 500, "p90": 900, "p99": 990, "p99.9": 999, "max": 1000})


RECIPE = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=32, patch_size=8, num_frames=8)  # 4 clips


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """12 clips of two sources, that of clip 5 has a name that is no good HTML; and one for validation."""
    folder = tmp_path_factory.mktemp("dataset")
    rows = [row(i, source="<b>phone" if i == 5 else "made-up", key=f"clip-{i}") for i in range(12)]
    rows += [row(12, split="val")]
    write_rows(folder, rows)
    return Manifest(folder)


def made_up(manifest: Manifest, batches: int = 30, slow_row: int = 5) -> StageMeters:
    """Two workers that decode 11.5 ms a clip, ten times that for one clip; a trainer that takes 20 ms for a step of 4 clips."""
    meters, free, now = StageMeters(), [0, 0], 0
    for number in range(batches):
        epoch, step = divmod(number, 3)
        positions = np.arange(4) + 4 * step
        rows = sample_clips(manifest, RECIPE, epoch, positions, np.zeros_like(positions)).rows
        records = np.zeros(4, RECORD)
        for i, one in enumerate(rows.tolist()):
            worker = int(np.argmin(free))
            times = 10 if one == slow_row else 1
            for stage in STAGE_MS:
                records[stage][i] = STAGE_MS[stage] * times * MS
            took = int(sum(STAGE_MS.values()) * times * MS)
            records["worker"][i], records["began"][i], records["ended"][i] = worker, free[worker], free[worker] + took
            records["submitted"][i], records["plan"][i] = max(0, free[worker] - MS), 0.1 * MS
            records["fetch_cpu"][i], records["cpu"][i] = records["fetch"][i] // 5, took - records["fetch"][i] * 4 // 5
            records["frames_decoded"][i], records["frames_spanned"][i], records["frames_kept"][i] = 40, 29, 8
            records["bytes_read"][i], records["bytes_used"][i] = 1000, 400
            records["restarts"][i] = one == slow_row
            free[worker] += took
        asked = now
        got = max(asked, int(records["ended"].max()))
        meters.add(BatchMeter(epoch, asked, got, int(got == asked), positions, rows, records))
        now = got + 20 * MS
    return meters


@pytest.fixture(scope="module")
def found(manifest: Manifest) -> dict[str, Any]:
    failed = FailedClip(0, 3, 0, 7, "clip-7", Failure.DAMAGED, "<script>bad")
    return figures(made_up(manifest), manifest, RECIPE, 2, [failed, failed])


def test_figures_of_made_up_notes(found: dict[str, Any]) -> None:
    assert found["clips"] == 120
    of_slow = 1 / 12 * 10 + 11 / 12  # every clip comes as often
    stages = {line["name"]: line for line in found["stages"]}
    assert list(stages) == ["plan", *STAGE_MS], "and nothing of RandAugment, which there was not"
    for stage in list(STAGE_MS)[1:]:
        assert stages[stage]["ms"]["mean"] == pytest.approx(STAGE_MS[stage] * of_slow)
        assert stages[stage]["core_ms"] == pytest.approx(STAGE_MS[stage] * of_slow)  # always on a core
        assert stages[stage]["ms"]["p50"] == pytest.approx(STAGE_MS[stage])
        assert stages[stage]["ms"]["max"] == pytest.approx(10 * STAGE_MS[stage])
    assert stages["fetch"]["core_ms"] == pytest.approx(0.1 * of_slow)  # waits four fifths of it
    assert sum(line["share"] for line in found["stages"]) == pytest.approx(1)
    assert found["core_ms"] == pytest.approx(sum(line["core_ms"] for line in found["stages"]), rel=1e-3)
    assert found["work_per_core"] == pytest.approx(1)
    assert found["busy"] > 0.9
    assert found["frames"] == {"decoded": 40, "spanned": 29, "kept": 8}
    source, other = sorted(found["groups"]["source"], key=lambda line: line["samples"])
    assert (source["name"], source["clips"]) == ("<b>phone", 10)
    assert source["time"] == pytest.approx(10 / 21)
    assert other["samples"] == pytest.approx(11 / 12)
    assert found["slowest"][0]["key"] == "clip-5"
    assert found["slowest"][0]["times_typical"] == pytest.approx(10)
    assert len({line["key"] for line in found["slowest"]}) == 12  # each once
    batches = found["batches"]
    assert 0 < batches["wait_share"] < 1
    assert batches["clips_per_s"] == pytest.approx(29 * 4 / batches["seconds"])
    assert found["queue"]["empty_share"] == pytest.approx(np.mean([point == 0 for point in found["queue"]["ready"]]))


def test_the_slowest_name_the_frames_that_were_asked(manifest: Manifest, found: dict[str, Any]) -> None:
    for line in found["slowest"]:
        samples = sample_clips(manifest, RECIPE, line["epoch"], np.array([line["position"]]), np.array([0]))
        assert parsed(line["frames"]) == np.unique(samples.frames).tolist()
        assert manifest.clip(int(samples.rows[0])).key == line["key"]


def test_the_picture_shows_two_seconds_without_overlap(found: dict[str, Any]) -> None:
    drawn = found["gantt"]
    assert [lane["name"] for lane in drawn["lanes"]] == ["trainer", "sampling", "worker 1", "worker 2"]
    for lane in drawn["lanes"]:
        ends = [begin + took for _, begin, took in lane["spans"]]
        assert all(begin >= end - 0.02 for (_, begin, _), end in zip(lane["spans"][1:], ends[:-1], strict=True))
        assert ends[-1] <= drawn["ms"] + 0.02
    assert drawn["ms"] <= 2000
    assert {stage for stage, *_ in drawn["lanes"][2]["spans"]} == set(STAGE_MS)


def test_nothing_watched_is_an_error(manifest: Manifest) -> None:
    with pytest.raises(ValueError, match="no batch was taken"):
        figures(StageMeters(), manifest, RECIPE, 1)


def profile_of(manifest: Manifest, found: dict[str, Any], target: float | None = None, **medians: float) -> dict[str, Any]:
    medians = medians or {"loader": 170.0, "model": 400.0, "cached": 395.0, "together": 160.0}
    return assemble(
        manifest=manifest,
        recipe=RECIPE,
        loader=found,
        run=found if "together" in medians else None,
        rates={name: {"median": rate, "rounds": [rate * 0.99, rate, rate * 1.01]} for name, rate in medians.items()},
        settings={
            "workers": 2,
            "cores": 2,
            "prefetch": 3,
            "clips_per_batch": 4,
            "device": "cuda",
            "decoder": "libav",
            "no_model": None if "model" in medians else "it is <slow>",
        },
        machine="two cores",
        title="a test",
        stages_alone={"workers": [1, 2, 3], "clips_per_s": {"fetch": [900.0, 1000.0, 800.0], "decode": [80.0, 90.0, 85.0]}},
        target=target,
    )


@pytest.mark.parametrize("medians", [{}, {"loader": 170.0}], ids=["with a model", "without"])
def test_the_page_is_whole_and_needs_no_network(
    manifest: Manifest, found: dict[str, Any], tmp_path: Path, medians: dict[str, float]
) -> None:
    profile = profile_of(manifest, found, target=100.0, **medians)
    file = write_report(tmp_path / "a" / "b", profile)
    text = file.read_text()
    read = Page(text)
    assert len(read.headings) == 10 and not read.links and "img" not in read.tags
    assert "http" not in text.replace("http-equiv", "")
    assert "&lt;script&gt;bad" in text and "&lt;b&gt;phone" in text
    assert json.loads((tmp_path / "a" / "b" / "report.json").read_text()) == json.loads(json.dumps(profile))
    for words in (
        escape(profile["verdict"]["limits"]),
        "100 views/s is met",
        "--replay clip-5 --frames ",
        "12 clips of split train (left out: 1 val)",
        "10 of 120 clips were decoded",
    ):
        assert words in text, words
    assert ("The model was not run: it is &lt;slow&gt;" in text) == bool(medians)
    short = {**found, "batches": {**found["batches"], "wait_share": None}}
    assert ("run was too short to say how long it waits" in page({**profile, "run": short})) == (not medians)


def test_a_missed_target_is_said_with_what_it_takes(manifest: Manifest, found: dict[str, Any]) -> None:
    profile = profile_of(manifest, found, target=2000.0)
    wanted = profile["target"]
    assert wanted["met"] is False
    assert wanted["cores"] == pytest.approx(1000 * found["core_ms"] / 1e3)
    assert wanted["mb_per_s"] == pytest.approx(1.0)
    assert wanted["frames_per_s"] == pytest.approx(40_000)
    assert wanted["nvdec_engines"] == pytest.approx(40_000 / (21_890 / 56))
    assert "target 2,000 views/s: MISSED, the loader gives 170" in summary(profile)


def test_the_summary_and_the_comparison(manifest: Manifest, found: dict[str, Any]) -> None:
    one, other = profile_of(manifest, found), profile_of(manifest, found, loader=340.0)
    text = summary(one)
    for words in ("What limits", "The one change", "The next ceiling", "How sure", "decoding frames", "170.0 views/s"):
        assert words in text
    other["settings"]["workers"] = 8
    told = comparison(one, other)
    lines = {line[:40].strip(): line[40:].split() for line in told.splitlines()}
    assert lines["loader alone, views/s"] == ["170", "340", "2.00"]
    assert lines["model alone, views/s"] == ["400", "–", "–"]
    assert lines["frames decoded a clip"] == ["40", "40", "1.00"]
    assert "settings.workers: 2 in A, 8 in B" in told
    assert "settings" not in comparison(one, one)
