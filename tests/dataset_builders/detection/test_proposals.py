"""Detected people from the files in which they are handed around; hostile and damaged ones."""

import collections
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from dataset_builders.detection.proposals import read_pickle, read_proposals
from dataset_builders.sources.boxes import BoxCheck

ROWS = np.array([[0.1, 0.2, 0.3, 0.4, 0.95], [0.5, 0.5, 0.9, 1.0, 0.5]], np.float32)


def read(*files: Path, images: tuple[Path, ...] = ()) -> tuple[list, list[str]]:
    check = BoxCheck()
    found = list(read_proposals(files, check, images))
    return [(one.movie, one.second, tuple(round(side, 4) for side in one.box), round(one.score, 3)) for one in found], [
        f"{entry.reason}: {entry.detail.rpartition('/')[2]}" for entry in check.dropped
    ]


def test_rows_of_text(tmp_path: Path) -> None:
    file = tmp_path / "boxes.csv"
    file.write_text(
        "1j20qq1JyX4,0902,0.036,0.098,0.55,0.979,,0.995518\n\na,903,0.1,0.1,0.2,0.2,12,0.5\na,904,0.1,0.1,0.2,0.2,0.25\n"
        "a,905,0.1,0.1,0.1,0.2,,0.9\na,906,2,2,3,3,,0.9\na,907,0.1,0.1,0.2,0.2,,7\na,908,0.1\n,909,0.1,0.1,0.2,0.2,,0.9\n"
    )
    found, wrong = read(file)
    assert found == [
        ("1j20qq1JyX4", 902.0, (0.036, 0.098, 0.55, 0.979), 0.996),
        ("a", 903.0, (0.1, 0.1, 0.2, 0.2), 0.5),
        ("a", 904.0, (0.1, 0.1, 0.2, 0.2), 0.25),
    ]
    assert wrong == [
        "empty_box: boxes.csv:5: box (0.1, 0.1, 0.1, 0.2) is empty: wanted is x1 < x2 and y1 < y2",
        "outside: boxes.csv:6: box (2, 2, 3, 3) lies outside of the frame, which goes from 0 to 1",
        "malformed: boxes.csv:7: score 7 is none: allowed are 0 to 1",
        "malformed: boxes.csv:8: 'a,908,0.1' is no row movie,second,x1,y1,x2,y2,...,score",
        "malformed: boxes.csv:9: ',909,0.1,0.1,0.2,0.2,,0.9' is no row movie,second,x1,y1,x2,y2,...,score",
    ]


def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    file, listed = tmp_path / "boxes.csv", tmp_path / "images.json"
    file.write_text("a,nan,0,0,1,1,,1\na,inf,0,0,1,1,,1\na,-1,0,0,1,1,,1\na,902.0333,0,0,1,1,,1\n")
    found, wrong = read(file)
    assert found == [("a", 902.0333, (0, 0, 1, 1), 1)]
    assert wrong == [f"malformed: boxes.csv:{n}: second {s} is none of a movie" for n, s in ((1, "nan"), (2, "inf"), (3, "-1"))]
    size = '"movie": "m", "width": 64, "height": 48'
    listed.write_text(f'{{"images": [{{"id": 1, "timestamp": NaN, {size}}}, {{"id": 2, "timestamp": 1{"0" * 400}, {size}}}]}}')
    boxes = tmp_path / "boxes.json"
    person = '"bbox": [0, 0, 9, 9], "score": 1'
    boxes.write_text(f'[{{"image_id": 1, {person}}}, {{"image_id": [1], {person}}}, {{"image_id": 2, {person}}}]')
    found, wrong = read(boxes, images=(listed,))
    assert not found and [line.split(": ")[1] for line in wrong] == ["boxes.json:0", "boxes.json:1", "boxes.json:2"]
    assert "second nan is none" in wrong[0] and "'image_id': [1]" in wrong[1]


WANTED = [("m", 902.0, (0.1, 0.2, 0.3, 0.4), 0.95), ("m", 902.0, (0.5, 0.5, 0.9, 1.0), 0.5)]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_arrays(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "FAIR.pkl"
    file.write_bytes(pickle.dumps({"m,0902": ROWS, "m,0903": np.empty((0, 5)), "n,0902": ROWS[:1].tolist()}, protocol))
    found, wrong = read(file)
    assert found == [*WANTED, ("n", 902.0, (0.1, 0.2, 0.3, 0.4), 0.95)] and not wrong
    file.write_bytes(pickle.dumps(collections.OrderedDict([("m,0902", ROWS.astype(np.float64))]), protocol))
    assert read(file)[0] == WANTED


class Hostile:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}",)


def test_hostile_pickles_are_refused_and_run_nothing(tmp_path: Path) -> None:
    file, trace = tmp_path / "boxes.pkl", tmp_path / "trace"
    for hostile in ({"m,0902": Hostile(trace)}, [Hostile(trace)], np.array([Hostile(trace)], object)):
        file.write_bytes(pickle.dumps(hostile))
        with pytest.raises(ValueError, match=r"holds (posix|os|nt)\.system, and is not read"):
            read_pickle(file)
    for text in (b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR.", b"cnumpy._core.multiarray\nfromfile\n."):
        file.write_bytes(text)
        with pytest.raises(ValueError, match="and is not read"):
            read_pickle(file)
    for damaged in (b"", b"not a pickle", pickle.dumps({"m,0902": ROWS})[:-9]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no pickle of arrays"):
            read_pickle(file)
    assert not trace.exists()


def test_json_by_movie_and_second(tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps({"m,0902": ROWS.tolist()}))
    assert read(file)[0] == WANTED
    for wrong in ({"m": ROWS.tolist()}, {"m,0902": [[1, 2]]}, {"m,0902": "x"}):
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="is no 'movie,0902' with rows"):
            read(file)


def test_coco_with_images_of_its_own_or_of_another_file(tmp_path: Path) -> None:
    images = [{"id": 7, "movie": "m", "timestamp": 902, "width": 640, "height": 480}, {"id": 8, "movie": "m"}]
    found = [{"image_id": 7, "bbox": [64, 96, 128, 96], "score": 0.95, "category_id": 1}]
    found += [
        {"image_id": 7, "bbox": [1, 1, 2, 2], "score": 0.9, "category_id": 3},
        {"image_id": 9, "bbox": [1, 1, 2, 2], "score": 1},
    ]
    boxes, listed = tmp_path / "ava_val_det_person_bbox.json", tmp_path / "ava_val_v2.2.json"
    boxes.write_text(json.dumps(found))
    listed.write_text(json.dumps({"images": images, "annotations": []}))
    taken, wrong = read(boxes, images=(listed,))
    assert taken == WANTED[:1]
    told = (
        "malformed: ava_val_det_person_bbox.json:2: {'image_id': 9, 'bbox': [1, 1, 2, 2], 'score': 1} is no person in an image"
    )
    assert wrong == [f"{told} that is listed"]
    boxes.write_text(json.dumps({"images": images, "annotations": found}))
    assert read(boxes) == (taken, wrong)
    boxes.write_text(json.dumps(found))
    with pytest.raises(ValueError, match=r"says image 7, and not of which movie and second that is; .*--images"):
        read(boxes)
    with pytest.raises(ValueError, match="has no list 'images'"):
        read(boxes, images=(boxes,))


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "boxes.npy"
    file.touch()
    with pytest.raises(ValueError, match=r"are read from \.csv, \.json and \.pkl files"):
        read(file)
