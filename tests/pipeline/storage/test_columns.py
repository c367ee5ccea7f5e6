import json
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dataset_builders.media.rejects import Reason
from dataset_builders.plan import Drop
from pipeline.storage.columns import DROPPED, MANIFEST, REJECTS, as_extra, in_memory, iter_rows, on_disk, read_rows, to_disk
from pipeline.storage.key_frames_writer import BOX_SCHEMA, KEY_FRAME_SCHEMA

PATHS = [b"plain.mp4", "déjà/vü.mp4".encode(), b"latin\xe9.mp4", rb"latin\xe9.mp4", None, b""]


def rejects(paths: list[bytes | None]) -> pa.Table:
    return pa.Table.from_pylist([{"path": path, "reason": "damaged"} for path in paths], schema=in_memory(REJECTS))


def test_paths_are_text_and_nothing_is_lost(tmp_path: Path) -> None:
    written = to_disk(rejects(PATHS), REJECTS)
    assert written.schema.equals(on_disk(REJECTS), check_metadata=True)
    assert written["path"].to_pylist() == ["plain.mp4", "déjà/vü.mp4", r"latin\xe9.mp4", r"latin\xe9.mp4", None, ""]
    assert written["path_bytes"].to_pylist() == [None, None, b"latin\xe9.mp4", None, None, None]
    assert pc.ends_with(written["path"], ".mp4").to_pylist() == [True, True, True, True, None, False]
    pq.write_table(written, tmp_path / "x.parquet")
    assert read_rows(tmp_path / "x.parquet").equals(rejects(PATHS))
    assert read_rows(tmp_path / "x.parquet", ["path"]).column_names == ["path"]
    assert pa.concat_tables(iter_rows(tmp_path / "x.parquet", ["reason", "path"], 2))["path"].to_pylist() == PATHS
    assert all(field.metadata[b"about"] for field in pq.read_schema(tmp_path / "x.parquet"))


def test_a_table_of_format_2_is_read_as_well(tmp_path: Path) -> None:
    older = pa.schema([field for field in in_memory(MANIFEST) if field.name != "extra"])
    pq.write_table(pa.Table.from_pylist([{"key": "a", "path": b"\xff"}], schema=older), tmp_path / "x.parquet")
    names = in_memory(MANIFEST).names
    for row in (*read_rows(tmp_path / "x.parquet", names).to_pylist(), *read_rows(tmp_path / "x.parquet").to_pylist()):
        assert (row["key"], row["path"]) == ("a", b"\xff") and "extra" not in row
    assert to_disk(read_rows(tmp_path / "x.parquet"), MANIFEST)["extra"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({}, None),
        ({"name": "", "page": None, "tags": []}, None),
        ({"name": 'a "red" car', "views": 0}, {"name": 'a "red" car', "views": 0}),
        ({"name": "日本", "subtitles": "x" * 2000}, {"name": "日本"}),
        (
            {"half": "\ud83d hm", "whole": "\ud83d\ude00", "score": math.nan},
            {"half": "\ufffd hm", "whole": "😀", "score": None},
        ),
    ],
)
def test_extra_is_json_that_any_table_can_hold(values: dict, kept: dict | None) -> None:
    text = as_extra(values)
    assert pa.array([text], pa.string())[0].as_py() == text
    assert (text and json.loads(text)) == kept


def test_the_page_says_what_every_column_and_reason_is() -> None:
    page = (Path(__file__).parents[3] / "docs" / "columns.md").read_text()
    parts = dict(part.split(".parquet", 1) for part in page.split("\n## ")[1:4])
    for name, columns in (("manifest", MANIFEST), ("rejects", REJECTS), ("dropped", DROPPED)):
        rows = [line for line in parts[name].splitlines() if line.startswith("| `")]
        assert rows == [f"| `{column.name}` | {column.type} | {column.about} |" for column in columns]
    for name, reasons in (("rejects", Reason), ("dropped", Drop)):
        assert [line.split("`")[1] for line in parts[name].splitlines() if line.startswith("- `")] == [*reasons]
    for schema in (KEY_FRAME_SCHEMA, BOX_SCHEMA):
        assert "".join(f"| `{name}` |" for name in schema.names) in "".join(
            line[: line.index("|", 2) + 1] for line in page.split("\n## ")[4].splitlines() if line.startswith("| `")
        )
