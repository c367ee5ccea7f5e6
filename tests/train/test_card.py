"""RUN/card.md: what hubs read of it, and what it says of a run that had troubles."""

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open

from train.pages.card import card
from train.pages.run_record import RunRecord


def test_the_hub_reads_its_head(straight: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    written = (straight / "card.md").read_text()
    data = hub.ModelCard(written).data
    assert (data.library_name, data.license, data.pipeline_tag) == ("tubecell", "unknown", "feature-extraction")
    assert data.tags == ["video", "tubecell", "pretrain"] and data.metrics is None
    assert "was not measured" in written and "| on the way | 0 steps skipped" in written


def test_it_says_what_was_measured_and_what_went_wrong(straight: Path) -> None:
    record = RunRecord.read(straight)
    with safe_open(straight / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    troubled = replace(
        record,
        name="<b>|run",
        evaluations=[{"step": 20, "held_out_top1": 0.75, "clips": 64, "of": 65}],
        skipped=[{"step": 3}],
        failures=[{"key": "a"}, {"key": "a"}, {"key": "b"}],
        starts=[*record.starts, {**record.starts[-1], "first_step": 7, "world_size": 8, "device": "NVIDIA H100"}],
    )
    told = card(troubled, metadata)
    hours = 8 * record.hours[-1]
    for words in (
        "# &lt;b&gt;\\|run",
        "held out top1 0.75 (0.632 to 0.84 in 95 of 100 cases), of 64 of 65 clips",
        "1 steps skipped for their gradient, 2 clips replaced that could not be decoded, 1 restarts",
        f"| hardware | 8 x NVIDIA H100, {hours:.3g} device hours of training |",
        '- "accuracy"',
        "on nothing else",
    ):
        assert words in told, words
    assert "was not measured" not in told
