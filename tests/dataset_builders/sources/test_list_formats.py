import os
from pathlib import Path

import pytest

from dataset_builders.sources.list_formats import BadLine, Line, read_list

CLASSES = ["run", "walk"]


def write(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "list.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a.mp4 3", Line(1, "a.mp4", "3")),
        ("my clips/b 1.mp4 3\r", Line(1, "my clips/b 1.mp4", "3")),
        ("my clips/b 1.mp4,3", Line(1, "my clips/b 1.mp4", "3")),
        ("x,y.mp4 3", Line(1, "x,y.mp4", "3")),
        ("x,y.mp4\t 3 ", Line(1, "x,y.mp4", "3")),
        ("a.mp4, 3", Line(1, "a.mp4", "3")),
        ("a b.mp4,playing squash", Line(1, "a b.mp4", "playing squash")),
        ("a b.mp4\tplaying squash", Line(1, "a b.mp4", "playing squash")),
        ("-i.mp4 0", Line(1, "-i.mp4", "0")),
        ("a b.mp4;3", Line(1, "a b.mp4", "3")),
        ("a.mp4,3.0", Line(1, "a.mp4", "3")),
        ('"a, b.mp4",3', Line(1, "a, b.mp4", "3")),
        ('"a ""b"".mp4" "3"', Line(1, 'a "b".mp4', "3")),
        ('"a b.mp4";"cooking, frying"', Line(1, "a b.mp4", "cooking, frying")),
        ('a 5".mp4 3', Line(1, 'a 5".mp4', "3")),
        ('"open.mp4 3', Line(1, '"open.mp4', "3")),
    ],
)
def test_path_and_label(tmp_path: Path, text: str, line: Line) -> None:
    assert list(read_list(write(tmp_path, text + "\n\n"), None, None)) == [line]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("k400/a.mp4 0 -1", Line(1, "k400/a.mp4", total=-1)),
        ("my clips/b 1.mp4 0 -1", Line(1, "my clips/b 1.mp4", total=-1)),
        ("ssv2/182040 1 58", Line(1, "ssv2/182040", start=1, total=58)),
        ("a b/ID 9601 300", Line(1, "a b/ID", start=9601, total=300)),
        ("a b/ID,9601,300", Line(1, "a b/ID", start=9601, total=300)),
        ("folder\t0\t16", Line(1, "folder", start=0, total=16)),
        ('"a, b","9601","300"', Line(1, "a, b", start=9601, total=300)),
    ],
)
def test_path_start_and_total(tmp_path: Path, text: str, line: Line) -> None:
    assert list(read_list(write(tmp_path, text), "path start total", None)) == [line]


def test_folder_total_and_label(tmp_path: Path) -> None:
    lines = list(read_list(write(tmp_path, "ssv2/1 2 58 1\nssv2/2 0 1\n"), "folder total label", CLASSES))
    assert lines[0] == Line(1, "ssv2/1 2", "walk", total=58)
    assert lines[1] == BadLine(2, "'ssv2/2 0 1': 0 images are wanted; there must be at least one")


@pytest.mark.parametrize("text", ["a 1", "a.mp4 0 x", "a.mp4 0 0", "a.mp4 -1 5", "0 -1", "", "a 0 99999999999"])
def test_bad_lines_of_a_pre_training_list(tmp_path: Path, text: str) -> None:
    lines = list(read_list(write(tmp_path, f"good.mp4 0 -1\n{text}\nlast.mp4 0 -1"), "path start total", None))
    assert [line for line in lines if isinstance(line, Line)] == [Line(1, "good.mp4", total=-1), Line(3, "last.mp4", total=-1)]
    bad = [line for line in lines if isinstance(line, BadLine)]
    assert [line.number for line in bad] == ([2] if text else [])
    assert all(repr(text) in line.detail for line in bad)


def test_labels_become_names(tmp_path: Path) -> None:
    lines = list(read_list(write(tmp_path, "a 0\nb 1\nc 2\nd,run\ne,jump\nf -1\n"), None, CLASSES))
    assert [line.label for line in lines if isinstance(line, Line)] == ["run", "walk", "run"]
    assert [line.number for line in lines if isinstance(line, BadLine)] == [3, 5, 6]
    assert "label '2' is neither one of the 2 class names nor a number below 2" in str(lines[2])


def test_what_the_columns_are(tmp_path: Path) -> None:
    """One bad line decides nothing; where two meanings are possible, an error asks."""
    lines = list(read_list(write(tmp_path, "rubbish\na.mp4 0 -1\nb 1 58\nc.mp4 0 -1\n"), None, None))
    assert [type(line) for line in lines] == [BadLine, Line, Line, Line]
    with pytest.raises(ValueError, match=r"list\.csv: the first line 'b 1 58' ends with two numbers.*say which by `columns`"):
        list(read_list(write(tmp_path, "b 1 58\nc 1 40\n"), None, None))
    assert list(read_list(write(tmp_path, "\n\n"), None, None)) == []


def test_csv_with_a_header(tmp_path: Path) -> None:
    text = (
        'Split,label,path,more\nval,run,"a, b\nc.mp4",x\n,,d.mp4,\nVALIDATION,1,e.mp4,\nnope,run,f.mp4,\ntrain,run\n,run,,\n\n'
    )
    lines = list(read_list(write(tmp_path, text), None, CLASSES))
    first = Line(2, "a, b\nc.mp4", "run", "val", extra='{"more": "x"}')
    assert lines[:3] == [first, Line(4, "d.mp4"), Line(5, "e.mp4", "walk", "val")]
    assert [(line.number, line.detail) for line in lines[3:] if isinstance(line, BadLine)] == [
        (6, "split 'nope' is not known; allowed are train, val and test"),
        (7, "['train', 'run'] has 2 columns instead of 4"),
        (8, "['', 'run', '', ''] has no path"),
    ]
    (line,) = read_list(write(tmp_path, b"path\tlabel\nlatin\xe9,x.mp4\trun\n"), None, None)
    assert isinstance(line, Line)
    assert (os.fsencode(line.path), line.label) == (b"latin\xe9,x.mp4", "run")
    with pytest.raises(ValueError, match="names no column 'path'"):
        list(read_list(write(tmp_path, "what,label\n"), "csv", None))


def test_an_open_quote_costs_no_crash(tmp_path: Path) -> None:
    text = 'path,label\na.mp4,run\n"b.mp4,run\n' + "c.mp4,run\n" * 20_000
    lines = list(read_list(write(tmp_path, text), None, None))
    assert lines[0] == Line(2, "a.mp4", "run")
    assert isinstance(lines[1], BadLine)
    assert lines[1].number == 3


def test_other_headings_and_a_list_of_another_kind(tmp_path: Path) -> None:
    lines = list(read_list(write(tmp_path, '\ufeffvideo;class\n"a;b.mp4";run\n'), None, None))
    assert lines == [Line(2, "a;b.mp4", "run")]
    with pytest.raises(ValueError, match=r"the first line 'label,youtube_id,time_start' .*give it as --k400"):
        list(read_list(write(tmp_path, "label,youtube_id,time_start\nrun,x,1\n"), None, None))
