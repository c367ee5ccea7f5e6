"""The command, on movies whose every frame says its number: the right frame in the middle, boxes beside it, bad input named."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from movies import make_movie, write_lists
from torchvision import models

from dataset_builders import build_detection
from dataset_builders.detection import detector as detectors
from pipeline.decoding.decode import decode_frames
from pipeline.storage.columns import read_rows
from pipeline.storage.key_frames import KeyFrames
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader

TRAIN = """whole-movie,0000,0.1,0.1,0.2,0.2,12,0
whole-movie,0002,0.1,0.2,0.3,0.9,12,0
whole-movie,0002,0.1,0.2,0.3,0.9,79,0
whole-movie,0002,0.5,0.5,0.5,0.9,12,1
whole-movie,5.0333,0.1,0.1,0.2,0.2,12,0
whole-movie,0006,0.1,0.1,0.2,0.2,12,0
whole-movie,0060,0.1,0.1,0.2,0.2,12,0
not-there_1,0002,0.1,0.1,0.2,0.2,12,0
"""
VAL = "in-pieces_1,0902,0.2,0.2,0.8,0.8,79,3\nin-pieces_1,0905,0.2,0.2,0.8,0.8,79,3\n"
KINETICS = "AbCdEfGhIjK,0013,0.0,0.0,0.5,1.0,12\nAbCdEfGhIjK,0099,0.0,0.0,0.5,1.0,12\n"
QUICK = ("--short-side", "48", "--workers", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("ava")
    make_movie(folder / "movies" / "whole-movie.mp4")  # 6 s
    for second in range(900, 905):
        make_movie(folder / "movies" / "in-pieces_1" / f"{second}.mp4", frames=25, rate=25, first=25 * (second - 900), gop=12)
    make_movie(folder / "kinetics" / "AbCdEfGhIjK_000010_000016.mp4", size="80x48")
    lists = write_lists(folder / "lists", **{"ava_train_v2.2": TRAIN, "ava_val_v2.2": VAL, "kinetics_val_v1.0": KINETICS})
    (lists / "ava_val_excluded_timestamps_v2.2.csv").write_text("in-pieces_1,0904\n")
    return folder


@pytest.fixture(scope="module")
def built(folder: Path) -> Path:
    proposals = folder / "people.csv"
    proposals.write_text(
        "in-pieces_1,0902,0.2,0.2,0.8,0.8,,0.9\nin-pieces_1,0902,0.1,0.2,0.1,0.8,,0.9\nelsewhere,0902,0,0,1,1,,0.9\n"
    )
    assert build_detection.main([*sources(folder), "--proposals", str(proposals), "--out", str(folder / "dataset")]) == 0
    return folder / "dataset"


def sources(folder: Path) -> list[str]:
    lists = str(folder / "lists")
    return ["--ava", str(folder / "movies"), lists, "--ava-kinetics", str(folder / "kinetics"), lists, *QUICK]


def level(dataset: Path, row: int, frame: int) -> float:
    manifest = Manifest(dataset)
    clip = manifest.clip(row)
    return float(decode_frames(clip, ShardReader(manifest.root.resolve()).read(clip), np.array([frame])).mean())


def test_the_key_frame_is_that_of_its_second(built: Path) -> None:
    manifest = Manifest(built)
    frames = KeyFrames(manifest)
    named = {
        (frames.movies[movie], second): row for row, (movie, second) in enumerate(zip(frames.movie, frames.second, strict=True))
    }
    assert list(named) == [
        ("whole-movie", 0.0),
        ("whole-movie", 2.0),
        ("whole-movie", 5.0333),
        ("in-pieces_1", 902.0),
        ("AbCdEfGhIjK", 13.0),
    ]
    # the level of the key frame: 16 + its number in the movie, in the full range
    numbers = {("whole-movie", 0.0): 0, ("whole-movie", 2.0): 60, ("whole-movie", 5.0333): 151, ("in-pieces_1", 902.0): 50}
    numbers[("AbCdEfGhIjK", 13.0)] = 90
    for image, number in numbers.items():
        row = named[image]
        assert abs(level(built, row, int(frames.frame[row])) - number * 255 / 219) < 1.2, image
    assert frames.frame.tolist() == [0, 32, 32, 32, 32]  # the first is at the movie's edge
    assert manifest.num_frames.tolist() == [32, 64, 61, 64, 64]
    assert [manifest.splits[split] for split in manifest.split] == ["train", "train", "train", "val", "val"]
    assert frames.place[4].tolist() == [0, 0, 1, 1] and manifest.width[4] == 80


def test_boxes_lie_beside_the_clips(built: Path) -> None:
    frames = KeyFrames(Manifest(built))
    places, clips = frames.of_clips(np.arange(5), "truth")
    assert clips.tolist() == [0, 1, 2, 3, 4] and frames.box[places[1]].tolist() == [0.1, 0.2, 0.3, 0.9]
    assert frames.labels(places).tolist() == [[True, False], [True, True], [True, False], [False, True], [True, False]]
    assert frames.person[places].tolist() == [0, 0, 0, 3, -1]
    assert [(action.id, action.evaluated) for action in frames.actions] == [(12, True), (79, False)]
    places, clips = frames.of_clips(np.arange(5), "detection")
    assert clips.tolist() == [3] and np.allclose(frames.score[places], 0.9)


def test_bad_input_is_named_and_counted(built: Path) -> None:
    rejects = read_rows(built / "rejects.parquet").to_pylist()
    assert [(row["source_id"], row["reason"]) for row in rejects] == [
        ("whole-movie,0006", "too_short"),
        ("whole-movie,0060", "too_short"),
        ("in-pieces_1,0905", "too_short"),
    ]
    assert "the annotated second, 6 s of the file, is not in it: frames are there from 4.93 s to 6.00 s" in rejects[0]["detail"]
    assert "there is no piece for second 905" in rejects[2]["detail"]
    dropped = [(row["source"], row["reason"], row["source_id"]) for row in read_rows(built / "dropped.parquet").to_pylist()]
    assert dropped == [
        ("ava", "empty_box", "whole-movie,0002"),
        ("ava", "no_file", "not-there_1,0002"),
        ("ava-kinetics", "outside", "AbCdEfGhIjK,0099"),
        ("detections", "empty_box", "in-pieces_1,0902"),
    ]


def test_other_detections_need_no_clip_anew(
    built: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = shutil.copytree(built, tmp_path / "dataset")
    before = {file.name: file.read_bytes() for file in dataset.glob("shards/*")}
    proposals = tmp_path / "other.json"
    proposals.write_text('{"in-pieces_1,0902": [[0.1, 0.1, 0.9, 0.9, 0.99], [0.1, 0.1, 0.5, 0.5, 0.3]]}')
    command = [*sources(folder), "--out", str(dataset)]
    assert build_detection.main([*command, "--proposals", str(proposals)]) == 0
    assert "5 people annotated, 2 detected, in 5 key frames" in (told := capsys.readouterr().out)
    assert "3 people annotated in seconds that are no clip" in told
    assert build_detection.main(command) == 0  # without any, they stay
    frames = KeyFrames(Manifest(dataset))
    assert [round(float(score), 2) for score in frames.score[frames.of_clips(np.array([3]), "detection")[0]]] == [0.99, 0.3]
    assert before == {file.name: file.read_bytes() for file in dataset.glob("shards/*")}
    sources_of = pq.read_table(dataset / "dropped.parquet")["source"].to_pylist()
    assert sources_of.count("ava") == 2 and "detections" not in sources_of
    # one source alone: what the other has stays
    assert build_detection.main([*command[:3], *QUICK, "--out", str(dataset)]) == 0
    assert len(KeyFrames(Manifest(dataset))) == 7


class Finder:
    """A detector that finds one person, and something that is none."""

    digest = "finder"

    def __init__(self) -> None:
        self.seen: list[float] = []

    def __call__(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        self.seen += [float(frame.mean()) for frame in frames]
        return [np.array([[0.25, 0.25, 0.75, 0.75, 0.9]]) for _ in frames]


def test_a_detector_looks_at_key_frames_and_goes_on(built: Path, tmp_path: Path) -> None:
    clips = pq.read_table(built / "key_frames.parquet")
    finder = Finder()
    found = list(detectors.detect_people(built, clips, finder, tmp_path))  # type: ignore[arg-type]
    assert len(found) == 5 and abs(finder.seen[1] - 60 * 255 / 219) < 1.2
    assert (found[0].movie, found[0].second, found[0].box, found[0].score) == (
        "whole-movie",
        0.0,
        (0.25, 0.25, 0.75, 0.75),
        0.9,
    )
    (kept,) = tmp_path.glob("people-*.csv")
    kept.write_text(kept.read_text().rpartition("\n")[0][:-5])  # killed while it wrote the last line
    again = Finder()
    assert list(detectors.detect_people(built, clips, again, tmp_path)) == found and len(again.seen) == 1  # type: ignore[arg-type]


def test_arguments_that_cannot_work(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, told in (
        (["--detector", "ssdlite320_mobilenet_v3_large"], "--detector and --detector-weights go together"),
        (["--proposals", str(tmp_path / "none.csv")], "none.csv: there is no such file"),
        (["--rate", "0"], "--rate 0: allowed are 1 to 240"),
        (["--preset", "copy"], "--preset copy: windows are cut out of movies"),
    ):
        assert build_detection.main([*sources(folder), *more, "--out", str(tmp_path / "dataset")]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "dataset").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torchvision's own
def test_a_detector_of_torchvision(built: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With weights that nobody trained, which find something somewhere: they are loaded, run, and refused where they are of
    another model."""
    name, weights = "ssdlite320_mobilenet_v3_large", tmp_path / "weights.pth"
    torch.save(models.get_model(name, weights=None, weights_backbone=None).state_dict(), weights)
    dataset = shutil.copytree(built, tmp_path / "dataset")
    command = [*sources(folder), "--detector-device", "cpu", "--detector-weights", str(weights), "--out", str(dataset)]
    assert build_detection.main([*command, "--detector", name]) == 0
    assert "detected, in 5 key frames" in capsys.readouterr().out
    (kept,) = dataset.glob(".build/people-*.csv")
    assert len(kept.read_text().splitlines()) == 2  # validation's
    frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    (people,) = detectors.PersonDetector(name, weights, "cpu")([frame])
    assert people.shape[1] == 5 and (people[:, :4] >= 0).all() and (people[:, :4] <= 1).all()

    assert build_detection.main([*command, "--detector", "fcos_resnet50_fpn"]) == 2
    assert "are not of fcos_resnet50_fpn" in capsys.readouterr().err
    assert build_detection.main([*command, "--detector", "yolo"]) == 2
    assert "--detector 'yolo' is none of torchvision's: " in capsys.readouterr().err
    weights.write_bytes(b"nothing")
    assert build_detection.main([*command, "--detector", name]) == 2
    assert "cannot be read" in capsys.readouterr().err
