"""Features and annotations as a dataset: what real files hold, and what is left out of bad ones, named and counted."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.localizer_config import LocalizerConfig
from tests.train.localization.made_features import write_features
from train.localization.annotations import read_annotations
from train.localization.feature_files import FeatureFile, FeatureFiles
from train.localization.feature_set import FeatureSet
from train.localization.sequences import SequenceConfig, timing
from train.localization.video_scores import read_video_scores

SHARED = Path(os.environ.get("TUBECELL_SHARED", Path(__file__).resolve().parents[4] / "shared"))
MODEL, SEQUENCE = LocalizerConfig(input_dim=4, num_steps=32, num_levels=3, windows=(5,)), SequenceConfig()


def video(*actions: tuple[float, float, Any], **about: Any) -> dict[str, Any]:
    listed = [{"segment": [begin, end], "label": label} for begin, end, label in actions]
    return {"subset": "Training", "duration": 20.0, "fps": 30.0, "annotations": listed, **about}


def dataset_of(folder: Path, database: dict[str, Any], steps: int = 147, **how: Any) -> FeatureSet:
    (folder / "features").mkdir(exist_ok=True)
    for name in database:
        if not name.startswith("without"):
            np.save(folder / "features" / f"{name}.npy", np.ones((steps, 4), np.float32))
    (folder / "annotations.json").write_text(json.dumps({"database": database}))
    return FeatureSet(folder / "annotations.json", folder / "features", MODEL, how.pop("config", SEQUENCE), **how)


def test_what_is_bad_is_left_out_named_and_counted(tmp_path: Path) -> None:
    database = {
        "good": video((1, 2, "run"), (1, 2, "run"), (5, 4, "run"), (3, 3, "run"), (2, 6, "jump"), (30, 40, "run")),
        "odd": video((1, "x", "run"), (1, 3, ""), (18, 26, "run"), (-3, -1, "run"), fps=30.0),
        "short": video((1, 4, "jump"), (12, 15, "jump")),
        "without_file": video((1, 2, "run")),
        "without_fps": video((1, 2, "run"), fps=None),
        "bad_shape": video((1, 2, "run")),
        "bad_bytes": video((1, 2, "run")),
        "empty": video(),
        "nothing": "text",
    }
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "without_fps.npy", np.ones((147, 4), np.float32))
    found = None
    for _ in range(2):  # the second time with bad files
        found = dataset_of(tmp_path, database)
        np.save(tmp_path / "features" / "bad_shape.npy", np.ones((9, 5), np.float32))
        (tmp_path / "features" / "bad_bytes.npy").write_bytes(b"\x93NUMPY broken")
        np.save(tmp_path / "features" / "short.npy", np.ones((60, 4), np.float32))
        (tmp_path / "again").mkdir(exist_ok=True)
        found = FeatureSet(tmp_path / "annotations.json", tmp_path / "features", MODEL, SEQUENCE)
    assert found is not None and [each.key for each in found.videos] == ["empty", "good", "odd", "short"]
    said = "\n".join(found.notices)
    for line in (
        "1 videos are no entries with annotations, and left out: nothing",
        "4 actions have no label with a begin before its end, and are left out: good run [5, 4], good run [3, 3], odd run",
        "1 actions are there twice, and count once: good run [1, 2]",
        "2 actions lie outside of their video, and are left out: good run [30, 40] of 20.0 s, odd run [-3, -1]",
        "1 annotated videos have no file of features, and are left out: without_file",
        "1 videos have no fps in annotations or features, and are left out (--sequence.fps): without_fps",
        "2 files of features are left out: bad_bytes.npy cannot be read",
        "bad_shape.npy has the shape (9, 5), not (steps, 4)",
        "1 actions end more than a second after their video, and are taken as they are: odd run 18 to 26 s",
        "1 actions begin after the last of their features: nothing can be learned of them: short jump 12 to 15 s",
        "1 files of features are not as long as their video (other --sequence.stride or --sequence.fps?): "
        "short.npy 8.4 s of 20.0",
    ):
        assert line in said, f"{line}\n\n{said}"
    assert found.names == ["jump", "run"] and found.splits == ["training"]
    segments, labels = found.truth(1)
    assert labels.tolist() == [1, 0] and segments[0].tolist() == [30 / 4 - 2, 60 / 4 - 2]


def test_what_nothing_can_be_made_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no features for any video of --annotations .*: 1 annotated videos have no file"):
        np.save(tmp_path / "other.npy", np.ones((9, 4), np.float32))
        (tmp_path / "features").mkdir()
        (tmp_path / "other.npy").rename(tmp_path / "features" / "other.npy")
        dataset_of(tmp_path, {"without": video((1, 2, "run"))})
    for text, said in (("{", "cannot be read as JSON"), ("[1]", "is no list of actions"), ('{"database": {}}', "is no list")):
        (tmp_path / "annotations.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_annotations(tmp_path / "annotations.json")
    with pytest.raises(ValueError, match="not one action; without truth there is no mAP"):
        dataset_of(tmp_path, {"empty": video()})
    with pytest.raises(ValueError, match="is no folder"):
        FeatureFiles(tmp_path / "none")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"has no file that ends in \.npy"):
        FeatureFiles(tmp_path / "nothing")
    np.save(tmp_path / "nothing" / "a.npy", np.ones((2, 4), np.float32))
    torch.save(torch.ones(2, 4), tmp_path / "nothing" / "a.pt")
    with pytest.raises(ValueError, match=r"has a\.npy and a\.pt; leave one"):
        FeatureFiles(tmp_path / "nothing")


def test_files_of_all_kinds(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    np.savez(tmp_path / "b.npz", feats=values, other=np.zeros(3))
    torch.save(torch.from_numpy(values), tmp_path / "c.pt")
    torch.save({"features": torch.from_numpy(values.T.copy())}, tmp_path / "d.pth")
    np.save(tmp_path / "e.npy", values[None].astype(np.float64))
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 4)
    pq.write_table(pa.table({"first_frame": range(9), "features": column}), tmp_path / "f.parquet")
    files = FeatureFiles(tmp_path)
    for name in "abcdef":
        path = files.find(name)
        assert path is not None
        file = FeatureFile.of(path, 4)
        assert file.steps == 9 and np.allclose(file.read(4, 2, 8, 2), values[2:8:2])
    for name, bad in (("g", np.ones((3, 4), np.int64)), ("h", np.ones((3, 7, 4))), ("i", np.ones((0, 4)))):
        np.save(tmp_path / f"{name}.npy", bad)
        with pytest.raises(ValueError, match=r"not numbers with a fraction|it holds tokens|has no step"):
            FeatureFile.of(tmp_path / f"{name}.npy", 4)
    torch.save({"x": Path("code")}, tmp_path / "hostile.pt")
    with pytest.raises(ValueError, match="cannot be read"):
        FeatureFile.of(tmp_path / "hostile.pt", 4)
    file = FeatureFile.of(tmp_path / "a.npy", 4)
    values[5, 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    assert len(file.read(4, 0, 5)) == 5
    with pytest.raises(ValueError, match="not finite, the first at step 5 of 9"):
        file.read(4, 3)
    np.save(tmp_path / "a.npy", values[:4])
    with pytest.raises(ValueError, match="has 4 steps, and had 9 when the run began"):
        file.read(4)


def test_what_features_say_of_themselves_is_heeded(tmp_path: Path) -> None:
    """Of `extract-features`: stride and window, and frames a second of each video."""
    database = {"a": video((1, 2, "run"), fps=None, duration=None)}
    (tmp_path / "features").mkdir()
    told = {"window": 16, "step": 1, "stride": 4, "fps": None}
    (tmp_path / "features" / "features.json").write_text(json.dumps({"features": told, "made_with": []}))
    (tmp_path / "features" / "videos.jsonl").write_text('{"video": "a", "fps": 25.0, "seconds": 24.0, "windows": 147}\n')
    found = dataset_of(tmp_path, database, config=replace(SEQUENCE, stride=None, frames=None)).videos[0]
    assert (found.timing.stride, found.timing.fps, found.duration) == (4, 25.0, 24.0)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"--sequence.frames is needed"):
        dataset_of(tmp_path / "other", {"a": video((1, 2, "run"))}, config=replace(SEQUENCE, frames=None))
    with pytest.raises(ValueError, match=r"says stride 4; --sequence.stride 8 is another: give that"):
        dataset_of(tmp_path, database, config=replace(SEQUENCE, stride=8))
    with pytest.raises(ValueError, match=r"says frames 16; --sequence.frames 32 is another"):
        dataset_of(tmp_path, database, config=replace(SEQUENCE, frames=32))


def test_timing_of_files_of_a_fixed_length() -> None:
    """Without a stride their steps are spread over the video."""
    at = timing(100, replace(SEQUENCE, stride=None), None, 15.0, 60.0, 32)
    assert (at.steps, at.stride, at.frames) == (100, 9.0, 9.0)
    at = timing(100, replace(SEQUENCE, stride=None, resample=True), None, 15.0, 60.0, 32)
    assert (at.steps, at.stride) == (32, 60 * 15 / 32)


def test_scores_of_whole_videos(tmp_path: Path) -> None:
    file, classes = tmp_path / "scores.json", ["jump", "run"]
    for values in (
        {"results": {"a": [0.1, 0.7, 0.2]}, "class": ["run", "swim", "jump"]},
        {"results": {"a": [{"label": "jump", "score": 0.2}, {"label": "run", "score": 0.1}]}},
        {"a": {"run": 0.1, "jump": 0.2}},
    ):
        file.write_text(json.dumps(values))
        assert read_video_scores(file, classes)["a"].tolist() == pytest.approx([0.2, 0.1])
    file.write_text('{"results": {"a": [0, 1e3, 0.5]}, "class": ["run", ["swim"], "jump"]}')
    assert read_video_scores(file, classes)["a"].tolist() == [0.5, 0.0]
    for text, said in (
        ("{", "cannot be read"),
        ('{"results": {}}', "has no"),
        ('{"a": [1, 2, 3]}', "no score for each of 2"),
        (f'{{"a": [1, {10**400}]}}', "a has no score for each of 2"),
        ('{"results": {"a": [1, 2]}, "class": [["run"], {"jump": 1}]}', "not one class of the annotations"),
        ('{"a": [0.5, 0.5], "b": [0.5, -1.5]}', r"b has -1.5 for run; .* not logits"),
        ('{"a": {"jump": NaN}}', "a has nan for jump"),
        ('{"a": [{"label": "run", "score": 1e300}]}', r"a has 1e\+300 for run"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_video_scores(file, classes)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """A label_id is a whole number, and a video's fps and duration are over 0; whatever else there is says nothing."""
    file, database = tmp_path / "annotations.json", dict[str, Any]()
    for name, fps, duration in (("a", -30, 20.0), ("b", 30, 0), ("c", "25", 10**400), ("d", math.nan, None)):
        database[name] = video((1, 2, "run"), (4, 5, "jump"), fps=fps, duration=duration)
    for ids, wanted in (((1, 0), ["jump", "run"]), ((0, 1), ["run", "jump"]), (([0], [1]), ["jump", "run"])):
        for each in database.values():
            for action, number in zip(each["annotations"], ids, strict=True):
                action["label_id"] = number
        file.write_text(json.dumps({"database": database}))
        found = read_annotations(file)
        assert list(found.classes) == wanted
    assert [(each.fps, each.duration) for each in found.videos.values()] == [(None, 20), (30, None), (25, None), (None, None)]
    said = "\n".join(found.faults.lines())
    for line in (
        "2 videos have a fps that is no number over 0, and counts as missing: a -30, d nan",
        "2 videos have a duration that is no number over 0, and counts as missing: b 0, c 1000",
        "1 classes have no label_id of their own, so that all are sorted by name: jump, run",
    ):
        assert line in said, said


@pytest.mark.skipif(not SHARED.exists(), reason="needs the shared files")
def test_the_real_annotations_of_thumos14() -> None:
    """ActionFormer's JSON, and one of text and without durations."""
    folder = SHARED / "annotations" / "thumos14"
    trimmed = read_annotations(folder / "thumos14_actionformer_trim.json")
    assert len(trimmed.videos) == 50 and {each.split for each in trimmed.videos.values()} == {"validation", "test"}
    assert trimmed.videos["video_validation_0000051"].actions[0].begin == 67.5
    ids = json.loads((folder / "thumos14_actionformer_trim.json").read_text())["database"]
    numbers = {a["label"]: a["label_id"] for each in ids.values() for a in each["annotations"]}
    assert trimmed.classes == sorted(numbers, key=lambda name: numbers[name])
    other = read_annotations(folder / "thumos_gt.json")
    assert len(other.videos) == 410 and other.videos["video_test_0000896"].duration is None
    assert sum(len(each.actions) for each in other.videos.values()) > 6000


def test_made_features(tmp_path: Path) -> None:
    features, annotations = write_features(tmp_path, {"train": 3, "val": 2})
    found = FeatureSet(annotations, features, replace(MODEL, input_dim=16), SEQUENCE)
    assert len(found) == 5 and found.splits == ["train", "val"] and not found.notices
