import json
from pathlib import Path

import pytest

from benchmarks import table2
from model.config import MODELS


@pytest.mark.slow
def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a small model in the paper's place."""
    monkeypatch.setitem(table2.MODELS, "vit-b", MODELS["tiny"])
    arguments = ["--models", "vit-b", "--views", "2", "--rounds", "2", "--seconds", "0.05", "--device", "cpu"]
    assert table2.main([*arguments, "--json", str(tmp_path / "table.json")]) == 0
    found = {result["name"]: result for result in json.loads((tmp_path / "table.json").read_text())}
    for figure in ("gmac", "executed_gmac", "activations"):
        assert found[f"table2/vit-b/dual/{figure}"]["value"] < found[f"table2/vit-b/encoder-only/{figure}"]["value"]
    assert found["table2/vit-b/dual/activations"]["baseline"] == 328
    assert found["table2/vit-b/speedup"]["baseline"] == pytest.approx(28.4 / 15.9)
    assert found["table2/vit-b/dual/views_per_second"]["value"] > 0
    assert "times as fast (paper 1.79)" in capsys.readouterr().out


def test_impossible_options_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert table2.main(["--views", "0"]) == 2
    assert "--views 0: it must be at least 1" in capsys.readouterr().err
