"""MSR-VTT, MSVD and CSV lists whose rows have a caption: several captions a clip, in `extra`."""

import json
from pathlib import Path

import pytest

from dataset_builders.plan import SourcePlan
from dataset_builders.sources import lists
from dataset_builders.sources.captions import plan_msrvtt, plan_msvd
from dataset_builders.sources.kinds import make_source
from pipeline.storage.columns import as_extra


def videos(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def found(planned: SourcePlan) -> list[tuple[bytes, str, dict]]:
    return [(row["path"], row["split"], json.loads(row["extra"] or "{}")) for row in planned.requests.to_pylist()]


def test_msrvtt(tmp_path: Path) -> None:
    folder = videos(tmp_path / "videos", *(f"video{number}.mp4" for number in (0, 1, 2, 7, 8)))
    annotations = tmp_path / "lists"
    annotations.mkdir()
    splits = {"video0": "train", "video1": "validate", "video7": "test", "video9": "train"}
    told = {
        "info": {},
        "videos": [
            *({"video_id": video, "category": 9, "split": split} for video, split in splits.items()),
            {"video_id": "video8", "split": "nowhere"},
        ],
        "sentences": [
            {"sen_id": 0, "video_id": "video0", "caption": "a car is shown"},
            {"sen_id": 1, "video_id": "video7", "caption": "a café"},
            {"sen_id": 2, "video_id": "video0", "caption": " a red car "},
            {"sen_id": 3, "video_id": "video0", "caption": "a car is shown"},
            {"sen_id": 4, "video_id": "video0", "caption": ""},
        ],
    }
    (annotations / "train_val_videodatainfo.json").write_text(json.dumps(told))
    planned = make_source(
        "vtt", "msrvtt", {"folder": folder, "lists": annotations}, tmp_path, ("train", "val", "test"), ""
    ).plan()
    assert found(planned) == [
        (b"video0.mp4", "train", {"captions": ["a car is shown", "a red car"], "category": 9}),
        (b"video1.mp4", "val", {"category": 9}),
        (b"video7.mp4", "test", {"captions": ["a café"], "category": 9}),
    ]
    assert planned.counts["malformed"] == 2 and planned.counts["no_file"] == 1 and planned.counts["without a caption"] == 2
    (annotations / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo1\nvideo7\n")
    (annotations / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr7,video7,a cup of tea\n")
    planned = make_source(
        "vtt", "msrvtt", {"folder": folder, "lists": annotations}, tmp_path, ("train", "val", "test"), ""
    ).plan()
    assert [(path, split, extra.get("captions")) for path, split, extra in found(planned)] == [
        (b"video0.mp4", "train", ["a car is shown", "a red car"]),
        (b"video1.mp4", "train", None),
        (b"video7.mp4", "test", ["a cup of tea"]),
    ]
    assert planned.counts["leak"] == 1 and planned.counts["not_chosen"] == 1
    (annotations / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json: is none of MSR-VTT's"):
        plan_msrvtt("vtt", folder=folder, annotations=annotations / "other.json")


def test_msvd(tmp_path: Path) -> None:
    folder = videos(tmp_path / "videos", "-4wsuPCjDBc_5_15.avi", "abc_0_9.avi")
    text = "# a header\n\n-4wsuPCjDBc_5_15 a squirrel is eating\n-4wsuPCjDBc_5_15 it eats a nut\nabc_0_9 a man, walking\n"
    (tmp_path / "AllVideoDescriptions.txt").write_text(text)
    corpus = "VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description\n"
    corpus += "-4wsuPCjDBc,5,15,1,clean,9,English,a squirrel is eating\n-4wsuPCjDBc,5,15,2,clean,9,Slovene,veverica je\n"
    corpus += '-4wsuPCjDBc,5,15,1,clean,9,English,it eats a nut\nabc,0,9,1,clean,9,English,"a man, walking"\n'
    (tmp_path / "video_corpus.csv").write_text(corpus)
    (tmp_path / "train_list.txt").write_text("-4wsuPCjDBc_5_15\n")
    (tmp_path / "test_list.txt").write_text("abc_0_9\n")
    given = {"train": tmp_path / "train_list.txt", "test": tmp_path / "test_list.txt"}
    for file in ("AllVideoDescriptions.txt", "video_corpus.csv"):
        assert found(plan_msvd("msvd", folder=folder, annotations=tmp_path / file, **given)) == [
            (b"-4wsuPCjDBc_5_15.avi", "train", {"captions": ["a squirrel is eating", "it eats a nut"]}),
            (b"abc_0_9.avi", "test", {"captions": ["a man, walking"]}),
        ]
    with pytest.raises(ValueError, match="none of the lists train, val and test is given"):
        plan_msvd("msvd", folder=folder, annotations=tmp_path / "AllVideoDescriptions.txt")


def test_rows_of_a_csv_are_captions_of_one_clip(tmp_path: Path) -> None:
    folder = videos(tmp_path / "videos", "a.mp4", "b.mp4", "c.mp4")
    text = 'path,caption,split\na.mp4,"a dog, running",\nb.mp4,a cat,val\na.mp4,it runs,\na.mp4,it runs,\nc.mp4,,\n'
    (tmp_path / "list.csv").write_text(text)
    planned = lists.plan("own", folder=folder, train=tmp_path / "list.csv")
    assert found(planned) == [
        (b"a.mp4", "train", {"captions": ["a dog, running", "it runs"]}),
        (b"b.mp4", "val", {"captions": ["a cat"]}),
        (b"c.mp4", "train", {}),
    ]
    (tmp_path / "both.csv").write_text("path;label;sentence;licence\na.mp4;run;a dog;CC0\na.mp4;run;two dogs;\n")
    planned = lists.plan("own", folder=folder, train=tmp_path / "both.csv")
    assert planned.requests["label"].to_pylist() == ["run"]
    assert found(planned) == [(b"a.mp4", "train", {"captions": ["a dog", "two dogs"], "licence": "CC0"})]


def test_captions_may_be_long() -> None:
    many = ["a man is playing a guitar on a stage"] * 81
    assert json.loads(as_extra({"captions": many, "name": "x" * 2000}) or "") == {"captions": many}
