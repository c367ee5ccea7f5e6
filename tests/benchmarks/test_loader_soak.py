import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.loader_soak import SLOPE, Look, grown, main, slopes, soak
from tests.benchmarks.leaking_decoders import LEAK, LeakingDecoder

PROCESSES = ("trainer", "sidecar", "fork server", "decoder 7", "decoder 8")


@pytest.mark.slow
def test_the_process_that_leaks_is_found(dataset: Path) -> None:
    """One of two that decode leaks, and only that one: what it leaks is what is measured."""
    looks, _ = soak(dataset, clips=150, workers=2, kills=0, make_decoder=LeakingDecoder)
    found = {slope.process: slope for slope in slopes(looks)}
    decoders = [name for name in found if name.startswith("decoder")]
    assert found.keys() == {"trainer", "sidecar", "fork server", *decoders} and len(decoders) == 2
    leaking, steady = sorted(decoders, key=lambda name: found[name].slope, reverse=True)
    assert found[leaking].slope == pytest.approx(LEAK, rel=0.2)
    assert found[leaking].limit < LEAK / 2 and found[steady].slope < LEAK / 4
    assert [words for words in grown(looks) if "bytes a clip" in words and leaking in words]
    assert not [words for words in grown(looks) if steady in words]


@pytest.mark.slow
def test_a_short_soak_is_steady(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When 144 bytes of each clip stayed in the heap, a process that decoded these grew by 2,800 bytes a clip."""
    assert main(["--clips", "3000", "--workers", "1", "--kills", "1", "--json", str(tmp_path / "soak.json")]) == 0
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["verdict"] == "steady"
    (decoder,) = [slope for slope in report["slopes"] if slope["process"].startswith("decoder")]
    assert decoder["clips"] >= 3000 and decoder["limit"] < 1000
    assert "nothing grows" in capsys.readouterr().out


def test_growth_is_found() -> None:
    """By the slope of the second half: what a process takes at its start is no leak."""
    steady = [Look(process, 1000 * n, 200 << 20, 1 << 30, 20, 9) for n in range(1, 101) for process in PROCESSES]
    started = [replace(x, own_bytes=x.own_bytes - max(0, 20_000 - x.clips) * 1000) for x in steady]
    assert grown(steady) == grown(started) == []
    leaking = [replace(x, own_bytes=x.own_bytes + (SLOPE + 1) * x.clips) for x in steady]
    assert grown(leaking) == [f"{process} grows by 51 bytes a clip, over 100000 clips" for process in PROCESSES]
    assert grown([replace(x, own_bytes=x.own_bytes + (SLOPE - 1) * x.clips) for x in steady]) == []
    assert grown(leaking[:100]) == []  # 20,000 clips: half a mebibyte may be a step of the allocator's
    much = [replace(x, own_bytes=x.own_bytes + 3800 * x.clips * (x.process == "decoder 7")) for x in steady[:100]]
    assert grown(much) == ["decoder 7 grows by 3800 bytes a clip, over 20000 clips, so few clips show no less than 117"]
    leaking = [replace(x, descriptors=20 + x.clips // 10_000 * (x.process == "sidecar")) for x in steady]
    assert grown(leaking) == ["descriptors of the sidecar grow from 22 to 27"]


def test_too_few_clips_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--clips", "10"]) == 2
    assert "fewer than 100" in capsys.readouterr().err
