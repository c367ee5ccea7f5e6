import re
from pathlib import Path

import pytest

from dataset_builders.plan import Drop
from dataset_builders.sources.annotations import Entry, as_files, is_text, read_json, read_lines, settle


def test_lines_end_with_lf_or_cr_lf_only(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbfa 1\r\nline\xe2\x80\xa8separator\x0bin a name 2\nlatin\xe9 3\n\nlast")
    assert read_lines(file) == ["a 1", "line\u2028separator\x0bin a name 2", "latin\udce9 3", "", "last"]
    file.write_bytes(b"")
    assert read_lines(file) == []


def test_errors_name_file_and_place(tmp_path: Path) -> None:
    file = tmp_path / "broken.json"
    with pytest.raises(ValueError, match=re.escape(f"annotation file {file} cannot be read: No such file")):
        read_lines(file)
    file.write_text('[\n{"id": "1"},\n{"id": 2,}]')
    with pytest.raises(ValueError, match=re.escape(f"{file}:3: is no JSON")):
        read_json(file)
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(file)


def test_one_file_or_several() -> None:
    assert as_files(None) == ()
    assert as_files("a.csv") == ("a.csv",)
    assert as_files([Path("a"), b"b"]) == (Path("a"), b"b")


def test_what_can_stand_in_a_table() -> None:
    assert all(map(is_text, ["a", "прыжок", "a\u00a0b", "😀"]))
    assert not any(map(is_text, ["", None, 5, "latin\udce9", "nul\0"]))


def test_duplicates_and_leaks() -> None:
    entries = [
        Entry("a", "train", "run", "t.csv", 1),
        Entry("b", "train", "run", "t.csv", 2),
        Entry("a", "train", "walk", "t.csv", 3),
        Entry("b", "val", "run", "v.csv", 1),
        Entry("c", "val", "run", "v.csv", 2),
        Entry("c", "test", "run", "e.csv", 1),
        Entry("a", "unused", "run", "u.csv", 1),
    ]
    kept, dropped = settle(entries)
    assert kept == [entries[0], entries[3], entries[4]]
    assert [(entry.id, entry.split, entry.reason) for entry in dropped] == [
        ("b", "train", Drop.LEAK),
        ("a", "train", Drop.DUPLICATE),
        ("c", "test", Drop.DUPLICATE),
        ("a", "unused", Drop.DUPLICATE),
    ]
    assert dropped[0].detail == "t.csv:2 lists it for training, v.csv:1 for val"
    assert dropped[1].detail == "t.csv:3 repeats t.csv:1 with label 'run' instead of 'walk'"
