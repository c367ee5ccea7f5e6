import base64
import io
import json
import re
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_dataset import finish, made_row, make_dataset, make_videos
from PIL import Image

from dataset_builders.pages.contact_sheet import photograph
from dataset_builders.pages.counts import class_lines, count_dataset
from dataset_builders.plan import dropped_table
from dataset_builders.report import main, write_report
from pipeline.report.charts import histogram
from pipeline.report.page import share, shown
from pipeline.storage.manifest_writer import SCHEMA
from tests.page_reader import Page

HOSTILE = b"<script>alert(1)</script>&\"'\n\x1b[31m\xff \xe2\x80\xae.mp4"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return make_videos(tmp_path_factory.mktemp("videos"))


def made_up(number: int, **columns: object) -> dict:
    """A row that no bytes belong to."""
    known = {"source": "own", "root": "own", "path": b"%d.mp4" % number, "size": 1 << 16, "fps": 30.0}
    times = {"num_frames": 300, "duration": 10.0, "rotation": 0, "keyframes": [0], "pts_start": 0, "pts_step": 512}
    rest = {"split": "train", "codec": "h264", "matrix": "bt601", "range": "limited", "sampling": "stride:4"}
    place = {"shard": "shards/own-000000.tar", "offset": 512, "content_hash": f"{number:032x}", "width": 320, "height": 256}
    return dict.fromkeys(SCHEMA.names) | {"key": f"key-{number}", **known, **times, **rest, **place, **columns}


def page_of(dataset: Path, pictures: bool = False) -> Page:
    """The report; pictures take a process that imports torch, so most tests do without."""
    with nullcontext() if pictures else patch("dataset_builders.report.take_pictures", return_value=[]):
        html = write_report(dataset).read_text()
    page = Page(html)
    assert all(link.startswith("data:image/jpeg;base64,") for link in page.links)
    assert not re.search(r"https?:|@import|url\(", html.split("<body>")[0])
    return page


def test_a_report_of_real_clips(tmp_path: Path, videos: list[bytes]) -> None:
    dataset = tmp_path / "dataset"
    make_dataset(dataset, videos)
    page = page_of(dataset, pictures=True)
    assert page.tags.count("img") == len(videos)
    picture = Image.open(io.BytesIO(base64.b64decode(page.links[0].split(",")[1])))
    assert picture.size == (64, 48)
    assert np.asarray(picture).std() > 20  # a picture, not a grey area
    text = page.text
    assert "6 clips of 6 files" in text
    assert "clip-0" in text
    assert page.links == page_of(dataset, pictures=True).links  # always the same clips


def test_counts(tmp_path: Path) -> None:
    """Files that are cut over batches' and sources' borders; sums, reasons, examples."""
    rows = []
    for source, files, per_file in (("a", 3, 1), ("b", 2, 40_000), ("c", 4, 2), ("a-more", 1, 3)):
        for file in range(files):
            for piece in range(per_file):
                path = b"same.mp4" if file == 0 else b"%d.mp4" % file
                part = {"start": piece * 10.0, "end": piece * 10.0 + 10.0}
                rows.append(made_up(len(rows), source=source, root=source, path=path, **part))
    rejects = [
        {"source": source, "path": b"%d" % i, "reason": reason, "detail": f"detail {i}"}
        for i, (source, reason) in enumerate([("a", "damaged"), ("b", "damaged"), ("b", "too_short"), ("nothing", "crash")])
    ]
    finish(tmp_path, rows, rejects)
    counts = count_dataset(tmp_path)
    found = {name: (s.files, s.clips, s.files_cut, s.clips_of_cut) for name, s in counts.sources.items()}
    want = {"a": (3, 3, 0, 0), "b": (2, 80_000, 2, 80_000), "c": (4, 8, 4, 8), "a-more": (1, 3, 1, 3), "nothing": (0, 0, 0, 0)}
    assert found == want
    total = counts.total
    assert (total.clips, total.bytes, total.seconds) == (80_014, 80_014 << 16, 800_140.0)
    assert dict(total.rejected) == {"damaged": 2, "too_short": 1, "crash": 1}
    assert [one.path for one in counts.rejects["damaged"]] == [b"0", b"1"]
    assert counts.sources["b"].rejected["too_short"] == 1
    assert counts.durations[100] == 80_014
    assert dict(counts.rates) == {30.0: 80_014}
    assert dict(counts.resolutions) == {(320, 256): 80_014}
    assert counts.sizes[16 * 4] == 80_014


def test_the_shares_and_the_paper(tmp_path: Path) -> None:
    rows = [made_up(i, source="insta", path=b"%d.mp4" % (i // 3)) for i in range(6)]
    rows += [made_up(i, source="k", split="val" if i == 9 else "train") for i in range(6, 10)]
    finish(tmp_path, rows)
    description = json.loads((tmp_path / "dataset.json").read_text())
    description["sources"]["insta"] |= {"kind": "instagram", "requested": 5, "expected_clips": 7, "notes": ["few & far"]}
    description["sources"]["k"] |= {"kind": "kinetics", "requested": 4, "expected_clips": 4, "counts": {"classes": 710}}
    (tmp_path / "dataset.json").write_text(json.dumps({**description, "options": {"preset": "vp9", "canvas": [1, 2]}}))
    text = page_of(tmp_path).text
    assert "Of 6 files 2 were cut into 6 clips" in text
    assert "insta 33.3 % 60.0 % 60.0 % × 1.80" in text
    assert "k 66.7 % 40.0 % 40.0 % × 0.60" in text
    assert "K710 658,340 658k in print 4 4 3 < 0.1 %" in text  # one of the four is for validation
    assert "UnlabeledHybrid 1,348,403 1.348M in print 11 6 9 < 0.1 %" in text
    assert "together 9 11 6 10" in text
    assert "insta: few & far" in text
    assert "classes 710" in text
    assert "vp9 preset" in text


def test_classes_of_each_split(tmp_path: Path) -> None:
    labels = ["run"] * 3 + ["walk"] + [None] + ["run", "fly <b>"] + ["sit"] * 5
    rows = [made_up(i, label=label, split="val" if 5 <= i < 7 else "train") for i, label in enumerate(labels)]
    finish(tmp_path, rows)
    text = page_of(tmp_path).text
    assert "train 3 1 walk 3 5 sit 1" in text  # least, median, most, without
    assert "val 2 1 fly <b> 1 1 run 0" in text
    assert "1 classes are in no training clip, such as fly <b>." in text
    assert class_lines(tmp_path) == [
        "train: 3 with 1 to 5 clips each, median 3, and 1 clips without a class",
        "val: 2 with 1 to 1 clips each, median 1",
    ]
    (tmp_path / "other").mkdir()
    finish(tmp_path / "other", [made_up(0)])
    assert "Classes" not in page_of(tmp_path / "other").text and not class_lines(tmp_path / "other")


def test_hostile_names_are_text(tmp_path: Path) -> None:
    name = "<b>bold</b>"
    reject = {"source": name, "path": HOSTILE, "reason": "crash", "detail": "<i>\u202e\x00</i>"}
    finish(tmp_path, [made_up(0, source=name)], [reject])
    columns = {"source": name, "path": [HOSTILE], "reason": "no_file", "detail": "a </section><img src=http://x/>"}
    pq.write_table(dropped_table(columns), tmp_path / "dropped.parquet")
    page = page_of(tmp_path)
    text = page.text
    assert name in text
    assert "<script>alert(1)</script>&\"'\\n\\x1b[31m\\xff \\u202e.mp4" in text
    assert "<i>\\u202e\\x00</i>" in text
    assert "</section><img src=http://x/>" in text
    assert "\u202e" not in (tmp_path / "report.html").read_text()


def test_no_clips_at_all(tmp_path: Path) -> None:
    finish(tmp_path, [], [{"source": "own", "path": b"a.txt", "reason": "not_video", "detail": "empty"}])
    page = page_of(tmp_path)
    text = page.text
    assert "There is no clip to train on" in text
    assert "not_video 1 100.0 % own: a.txt empty" in text
    assert "svg" not in page.tags
    assert "Contact sheet" not in text
    assert "nan" not in text.lower()


def test_one_clip_and_nothing_left_out(tmp_path: Path) -> None:
    finish(tmp_path, [made_up(0, duration=0.0, size=1)])
    text = page_of(tmp_path).text
    assert "1 clips" in text
    assert "Rejected Nothing." in text
    assert "Not asked for Nothing." in text


def test_extreme_clips(tmp_path: Path) -> None:
    changes = [{"duration": 90_000.0, "size": 5 << 40}, {"fps": 1e-3, "duration": 0.001}, {"width": 16384, "height": 16}]
    finish(tmp_path, [made_up(i, **change) for i, change in enumerate(changes)])
    text = page_of(tmp_path).text
    assert "16384 × 16" in text
    counts = count_dataset(tmp_path)
    assert counts.durations.sum() == counts.sizes.sum() == 3


def test_clips_that_cannot_be_shown(tmp_path: Path, videos: list[bytes]) -> None:
    dataset = tmp_path / "dataset"
    rows = make_dataset(dataset, videos[:2])
    shard = dataset / rows[0]["shard"]
    data = bytearray(shard.read_bytes())
    data[rows[0]["offset"] + 50] ^= 1
    shard.write_bytes(data)
    pictures = [next(photograph(str(dataset), row)) for row in rows]
    assert f"are not those of clip {rows[0]['key']} in the manifest" in str(pictures[0])
    assert isinstance(pictures[1], bytes)
    text = page_of(dataset, pictures=True).text
    assert f"are not those of clip {rows[0]['key']} in the manifest" in text
    assert "1 of them could not be shown: run verify.py" in text
    [trouble] = photograph(str(dataset), {**rows[1], "shard": "gone.tar"})
    assert "No such file" in str(trouble)
    [trouble] = photograph(str(dataset), {**rows[1], "num_frames": 200})
    assert "did not come out" in str(trouble)


def test_frames_are_upright(tmp_path: Path, videos: list[bytes]) -> None:
    row = {**made_row("key", videos[0]), "shard": "clip", "offset": 0, "size": len(videos[0])}
    row |= {"rotation": 90, "width": row["height"], "height": row["width"]}
    (tmp_path / "clip").write_bytes(videos[0])
    [jpeg] = photograph(str(tmp_path), row)
    assert isinstance(jpeg, bytes)
    assert Image.open(io.BytesIO(jpeg)).size == (48, 64)


def test_histograms_hold_every_clip() -> None:
    drawn = histogram([0, 3, 1], ["a", "b<", "c"], [(0.0, "0"), (3.0, "3")], "note")
    assert re.findall(r'<i title="(.*?)">', drawn) == ["a: 0 (0.0%)", "b&lt;: 3 (75.0%)", "c: 1 (25.0%)"]
    bars = [re.findall(r"[\d.]+", path)[1::2] for path in re.findall(r'd="([^"]*)" style="fill: var\(--bar', drawn)]
    tall = [float(bar[0]) - float(bar[2]) for bar in bars]
    assert len(tall) == 2 and tall[0] == pytest.approx(3 * tall[1], rel=0.01)


def test_shares_and_text() -> None:
    assert [share(1, 4), share(0, 4), share(1, 10_000), share(0, 0)] == ["25.0 %", "0.0 %", "< 0.1 %", "–"]
    values = [b"a\xffb\t<", "\ud800", 1234, None, ["a", 2]]
    assert [shown(value) for value in values] == ["a\\xffb\\t<", "\\ud800", "1,234", "–", "a, 2"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main([str(tmp_path)]) == 2
    assert "has no manifest.parquet" in capsys.readouterr().err
    finish(tmp_path, [])
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")


def test_what_one_wants_to_know_of_the_clips(tmp_path: Path) -> None:
    """Few rejects are all named; clips too short for a view, removed ones, equal ones, and how long the build took."""
    rows = [made_up(0, num_frames=64), made_up(1, num_frames=63), made_up(2, sampling="seconds:0.1", num_frames=47, size=0)]
    rejects = [{"source": "own", "path": b"%d.avi" % i, "reason": "damaged", "detail": f"detail {i}"} for i in range(20)]
    finish(tmp_path, rows, rejects)
    (tmp_path / ".build").mkdir()
    (tmp_path / ".build" / "took.json").write_text('{"seconds": 3725.0}')
    described = json.loads((tmp_path / "dataset.json").read_text())
    told = {**described, "duplicates": {"clips": 3, "in_training_and_held_out": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    text = page_of(tmp_path).text
    assert "2 of 3 clips (66.7 %) are shorter than a view of 16 frames at their sampling" in text
    assert "3 clips have the bytes of another one, and 1 of them are in training and in validation or test" in text
    assert "1 clips were removed for good" in text
    assert "1:02:05 the last build took" in text
    assert all(f"own: {i}.avi detail {i}" in text for i in range(20))
    finish(tmp_path, rows, [*rejects, {"source": "own", "path": b"last.avi", "reason": "crash", "detail": ""}])
    text = page_of(tmp_path).text
    assert "damaged 20 95.2 % own: 0.avi detail 0" in text and "1.avi" not in text and "own: last.avi" in text
