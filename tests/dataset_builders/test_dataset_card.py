"""DATASET/card.md: true, escaped, and its code runs."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from made_dataset import finish
from test_report import made_up

from dataset_builders.pages.dataset_card import find_licences, own_shards
from dataset_builders.report import write_report
from pipeline.report.markdown import front_matter, literal, table

HOSTILE = "a<b>|`x`](http://x/) **c**\n---\n\u202e"


def card_of(dataset: Path) -> str:
    write_report(dataset)
    return (dataset / "card.md").read_text()


def test_a_card_counts_and_names_no_licence_that_is_not_given(tmp_path: Path) -> None:
    told = [{"licence": "CC-BY <4.0>"}, {"license": "CC0"}, {"licence": 7}, {"title": "my licence"}]
    rows = [made_up(i, extra=json.dumps(extra), label="jump") for i, extra in enumerate(told)]
    rows += [made_up(9, source="other", split="val", path=b"9.mp4")]
    rejects = [{"source": "own", "path": b"broken.mp4", "reason": "damaged", "detail": "no index"}]
    finish(tmp_path, rows, rejects)
    assert find_licences(tmp_path) == {"own": Counter({"CC-BY <4.0>": 1, "CC0": 1})}
    card = card_of(tmp_path)
    for words in (
        "| clips | 5, of 5 files |",
        "| splits | train 4, val 1 |",
        "| own | 4 | 4 | 1 | 0 | CC-BY &lt;4.0&gt; (1 clips); CC0 (1 clips); not stated (2 clips) |",
        "| other | 1 | 1 | 0 | 0 | not stated |",
        "| rejected | damaged | 1 | `rejects.parquet` |",
        "| classes | train: 1, of 4 to 4 clips |",
        'license: "other"',
        '- "video-classification"',
        "Not stated: there is no dataset.json.",
    ):
        assert words in card, words
    assert "broken" not in card  # by number here, by name in its table


def test_names_stay_names(tmp_path: Path) -> None:
    finish(tmp_path, [made_up(0, source=HOSTILE, split=HOSTILE, label=HOSTILE, extra=json.dumps({"licence": HOSTILE}))])
    card = card_of(tmp_path)
    assert "<b>" not in card and not re.search(r"(?<!\\)\]\(http", card) and "\u202e" not in card and "**c**" not in card
    for line in card.splitlines():
        if line.startswith("| ") and "a&lt;b" in line:  # as many cells as its table has
            assert len(re.split(r"(?<!\\)\|", line)) in (4, 8), line
    assert card.count("\n---\n") == 1
    assert literal("a|b*c") == "a\\|b\\*c" and table(["x"], [["1"]]) == ["| x |", "| --- |", "| 1 |"]
    assert front_matter({"a": 'b"\n- c', "d": "", "e": [], "f": ["g"]}) == ["---", 'a: "b\\"\\n- c"', "f:", '- "g"', "---", ""]


@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO")  # webdataset leaves its tars to the collector
def test_the_hub_reads_its_head_and_its_code_runs(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = (dataset / "card.md").read_text()
    data = hub.DatasetCard(card).data
    assert (data.license, data.size_categories, data.tags) == ("unknown", ["n<1K"], ["video", "webdataset", "tubecell"])
    assert data.pretty_name == "dataset" and own_shards(dataset)
    assert str(dataset.parent) not in card  # no folders of this machine
    codes = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(codes) == 2
    for code in codes:
        known: dict = {}
        exec(code.replace('"DATASET', f'"{dataset}'), known)
        if "batch" in known:
            assert known["batch"].views.shape[0] == 8
        else:
            assert known["sample"]["json"]["split"] == "train"


def test_an_empty_dataset_has_one(tmp_path: Path) -> None:
    finish(tmp_path, [])
    assert "| clips | 0, of 0 files |" in card_of(tmp_path)
