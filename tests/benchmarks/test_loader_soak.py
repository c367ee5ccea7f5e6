import json
from pathlib import Path

import pytest

from benchmarks.loader_soak import KINDS, Look, grown, main


@pytest.mark.slow
def test_a_short_soak_is_steady(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batches", "400", "--data", str(dataset), "--kills", "1", "--json", str(tmp_path / "soak.json")]) == 0
    report = json.loads((tmp_path / "soak.json").read_text())
    assert report["verdict"] == "steady" and len(report["looks"]) == 150
    assert "nothing grows" in capsys.readouterr().out


def test_growth_is_found() -> None:
    steady = [Look(n * 100, kind, 200 << 20, 1 << 30, 20, 9) for n in range(1, 51) for kind in KINDS]
    assert grown(steady) == []
    leaking = [Look(x.batches, x.process, x.own_bytes + x.batches * 20_000, x.rss_bytes, 20, 9) for x in steady]
    assert [words.partition(" grow")[0] for words in grown(leaking)] == [
        "own_bytes of the trainer",
        "own_bytes of the sidecar",
        "own_bytes of the workers",
    ]
    leaking = [Look(x.batches, x.process, 1, 1, 20 + x.batches // 1000 * (x.process == "sidecar"), 9) for x in steady]
    assert grown(leaking) == ["descriptors of the sidecar grow from 21 to 23"]


def test_too_few_batches_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--batches", "10"]) == 2
    assert "fewer than 200" in capsys.readouterr().err
