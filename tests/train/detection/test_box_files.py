"""AVA's files: read as they are, and refused by the line."""

from pathlib import Path

import numpy as np
import pytest

from train.detection.box_files import numbered, parse_boxes, parse_excluded, written

TRUTH = b"""-5KQ,0902,0.077,0.151,0.283,0.811,80,1
-5KQ,0902,0.077,0.151,0.283,0.811,9,1
_x,0904,0.226,0.032,0.366,0.497,12,0
-5KQ,0903
_x,0905,,,,,,
"""


def test_what_is_in_a_file_of_truth() -> None:
    found = parse_boxes(b"\xef\xbb\xbf" + TRUTH, "ava.csv", scored=False)
    assert found.movies.to_pylist() == ["-5KQ", "-5KQ", "_x"] and found.seconds.tolist() == [902, 902, 904]
    assert found.rows.corners[2].tolist() == [0.226, 0.032, 0.366, 0.497] and found.rows.actions.tolist() == [80, 9, 12]
    assert found.rows.scores.tolist() == [1, 1, 1]  # not the number of a person
    assert found.notices == ["2 frames without people"]
    without = b"\n".join(line.rpartition(b",")[0] for line in TRUTH.splitlines()[:3])
    assert parse_boxes(without, "ava.csv", scored=False).rows.actions.tolist() == [80, 9, 12]


def test_frames_have_the_same_number_in_all_files() -> None:
    truth = parse_boxes(TRUTH, "ava.csv", scored=False)
    found = parse_boxes(b"_x,904,0,0,1,1,12,0.5\n-5KQ,0902,0,0,1,1,9,0.25\nnew,1,0,0,1,1,9,1e-3\n", "found.csv", scored=True)
    excluded = parse_excluded(b"_x,0904\n", "excluded.csv")
    (of_truth, of_found, of_excluded), names = numbered([truth, found, excluded])
    assert (
        of_truth.images.tolist() == [0, 0, 1] and of_found.images.tolist() == [1, 0, 2] and of_excluded.images.tolist() == [1]
    )
    assert names == [("-5KQ", 902), ("_x", 904), ("new", 1)]
    assert of_found.scores.tolist() == [0.5, 0.25, 0.001] and len(of_excluded.corners) == 0


def test_what_is_written_is_read_again() -> None:
    (rows,), names = numbered([parse_boxes(TRUTH, "ava.csv", scored=False)])
    again = parse_boxes(written(names, rows), "found.csv", scored=True)
    assert again.seconds.tolist() == [902, 902, 904] and np.array_equal(again.rows.corners, rows.corners)
    assert written(names, rows).startswith(b"-5KQ,0902,0.0770,0.1510,0.2830,0.8110,80,1\n")


def test_two_frames_of_one_second_are_two() -> None:
    """And no second is too large."""
    lines = [b"m,%b,0,0,1,1,1,.5" % second for second in (b"902.0333", b"902.5", b"0902", b"1e300")]
    found = parse_boxes(b"\n".join(lines), "found.csv", scored=True)
    (rows,), names = numbered([found])
    assert rows.images.tolist() == [1, 2, 0, 3] and names == [("m", 902.0), ("m", 902.0333), ("m", 902.5), ("m", 1e300)]
    assert [line.split(b",")[1] for line in written(names, rows).splitlines()[:3]] == [b"902.0333", b"902.5", b"0902"]


def test_boxes_that_are_strange_are_told_and_kept() -> None:
    found = parse_boxes(b"a,1,0,0,1,2,3,.5\r\na,2,0.5,0,.5,1,3,.5\r\n", "found.csv", scored=True)
    assert len(found.rows) == 2 and found.notices == [
        "1 boxes reach out of the frame, such as (0, 0, 1, 2); they are taken as they are",
        "1 boxes have no area",
    ]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"a,1\n", b"a,1,,,,,,\n"])
def test_a_file_may_have_no_box(data: bytes) -> None:
    assert len(parse_boxes(data, "found.csv", scored=True).rows) == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"a,1,0,0,1,1,3", r"found.csv has rows of 7 fields, where movie,second,x0,y0,x1,y1,action,score are expected"),
        (b"a,1,0,0,1,1,3,.5\nb,2,0,z,1,1,3,.5", r"found.csv:2: y0 'z' is no number"),
        (b"a,1,0,0,1,1,3,.5\nb,2,0,0,1,1,3,inf", r"found.csv:2: score 'inf' is no number"),
        (b"a,1,0,0,1,1,3,.5\nb,2,0", r"found.csv: .*Row #2: Expected 8 columns, got 3"),
        (b"a,one,0,0,1,1,3,.5", r"found.csv:1: second 'one' is no number"),
        (b"a,1,0,0,1,1,3.5,.5", r"found.csv:1: action 3.5 is no number of a class"),
        (b"a,0905,,,,,,\nb,1,0,0,1,1,1e30,.5", r"found.csv:2: action 1e\+30 is no number of a class"),
        (b"a,0905,,,,,,\nb,1,0,z,1,1,1,.5", r"found.csv:2: y0 'z' is no number"),
    ],
)
def test_a_row_that_is_none_is_named(line: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_boxes(line + b"\n", "found.csv", scored=True)


def test_the_official_sample(shared: Path) -> None:
    found = parse_boxes((shared / "annotations" / "ava" / "ava_val_v2.2_sample.csv").read_bytes(), "x", scored=False)
    assert len(found.rows) == 145 and not found.notices and found.rows.actions.max() <= 80
