import json
import lzma
import os
from pathlib import Path

import pytest
from empty_files import touch

from dataset_builders.plan import DROPPED_SCHEMA, REQUEST_SCHEMA
from dataset_builders.sources import instagram


def write_post(path: Path, shortcode: object, **others: object) -> None:
    """What Instaloader writes beside a video."""
    text = json.dumps({"instaloader": {"node_type": "Post"}, "node": {"shortcode": shortcode, **others}}).encode()
    path.write_bytes(lzma.compress(text) if path.suffix == ".xz" else text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(
        tmp_path,
        *("cats/2020-01-31_12-00-00_UTC.mp4", "cats/2020-01-31_12-00-00_UTC.jpg", "cats/2020-01-31_12-00-00_UTC.txt"),
        *("cats/2021-02-03_04-05-06_UTC_1.mp4", "cats/2021-02-03_04-05-06_UTC_2.jpg", "cats/2021-02-03_04-05-06_UTC_3.mp4"),
        *("#dogs/2020-01-31_12-00-00_UTC.mp4", "#dogs/plain.MOV", "#dogs/picture.HEIC", "id"),
    )
    write_post(tmp_path / "cats" / "2020-01-31_12-00-00_UTC.json.xz", "B7-_abcDEF1", video_duration=34.5)
    write_post(tmp_path / "cats" / "2021-02-03_04-05-06_UTC.json", "CKsidecar01", video_duration=9.0)
    write_post(tmp_path / "#dogs" / "2020-01-31_12-00-00_UTC.json", "B7-_abcDEF1")
    return tmp_path


def test_instaloader_layout(folder: Path) -> None:
    planned = instagram.plan("insta", folder=folder)
    assert planned.requests.schema == REQUEST_SCHEMA
    assert planned.dropped.schema == DROPPED_SCHEMA
    rows = [(row["path"], row["source_id"], row["seconds"]) for row in planned.requests.to_pylist()]
    twice = [path for path, *_ in rows if b"2020" in path]  # which of the two is the seed's choice
    assert len(twice) == 1
    assert [row for row in rows if row[0] not in twice] == [
        (b"#dogs/plain.MOV", None, None),
        (b"cats/2021-02-03_04-05-06_UTC_1.mp4", "CKsidecar01", None),
        (b"cats/2021-02-03_04-05-06_UTC_3.mp4", "CKsidecar01", None),
        (b"id", None, None),
    ]
    (dropped,) = planned.dropped.to_pylist()
    assert dropped["reason"] == "duplicate"
    assert {dropped["path"], *twice} == {b"#dogs/2020-01-31_12-00-00_UTC.mp4", b"cats/2020-01-31_12-00-00_UTC.mp4"}
    assert dropped["detail"] == f"the video of post B7-_abcDEF1 that {twice[0].decode()} is"
    assert planned.counts == {
        "found": 6,
        "chosen": 5,
        "not_chosen": 0,
        "duplicate": 1,
        "pictures": 3,
        "metadata files": 4,
        "with a shortcode": 3,
    }
    assert planned.notes == ("insta: 250,000 videos were asked for and 5 are there: 249,995 fewer",)
    assert instagram.plan("insta", folder=folder, number=None).notes == ()


def test_the_choice_is_by_seed_and_duplicates_are_replaced(tmp_path: Path) -> None:
    for number in range(40):
        folder = touch(tmp_path / f"{number % 20}_{number // 20}", "v.mp4")
        write_post(folder / "v.json", f"post{number % 20:02d}")
    planned = instagram.plan("insta", folder=tmp_path, number=15)
    assert len(planned.requests) == len(set(planned.requests["source_id"].to_pylist())) == 15
    assert planned.counts["chosen"] + planned.counts["not_chosen"] + planned.counts["duplicate"] == 40
    assert planned.requests.equals(instagram.plan("insta", folder=tmp_path, number=15).requests)
    assert not planned.requests.equals(instagram.plan("insta", folder=tmp_path, number=15, seed=1).requests)
    assert instagram.plan("insta", folder=tmp_path, number=30).counts["chosen"] == 20


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        b"[]",
        b'{"node": 5}',
        b'{"node": {"shortcode": "../../up"}}',
        b'{"node": {"shortcode": 5}}',
        b'{"node": {"id": 9' + b"9" * 5000 + b"}}",
        b"[" * 200_000,
        b'"' + b" " * (instagram.MAX_METADATA + 1) + b'"',
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_unusable_metadata_cost_nothing_but_the_shortcode(tmp_path: Path, content: bytes, packed: bool) -> None:
    touch(tmp_path, b"latin\xe9/line\nbreak.mp4")
    base = os.path.join(os.fsencode(tmp_path), b"latin\xe9", b"line\nbreak")
    with open(base + (b".json.xz" if packed else b".json"), "wb") as file:
        file.write(lzma.compress(content, preset=0) if packed else content)
    planned = instagram.plan("insta", folder=tmp_path)
    assert [(row["path"], row["source_id"]) for row in planned.requests.to_pylist()] == [(b"latin\xe9/line\nbreak.mp4", None)]
    assert planned.counts["metadata files"] == 1


def test_damaged_and_hostile_archives(tmp_path: Path) -> None:
    whole = lzma.compress(b'{"node": {"shortcode": "ABCDEFGH"}}', preset=0)
    memory = lzma.compress(b'{"node": {"shortcode": "ABCDEFGH"}}', filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29}])
    for name, data in (("whole", whole), ("half", whole[:-20]), ("junk", b"junk" + whole), ("memory", memory)):
        (tmp_path / f"{name}.mp4").touch()
        (tmp_path / f"{name}.json.xz").write_bytes(data)
    (tmp_path / "pipe.mp4").touch()
    os.mkfifo(tmp_path / "pipe.json")
    planned = instagram.plan("insta", folder=tmp_path)
    known = dict(zip(planned.requests["path"].to_pylist(), planned.requests["source_id"].to_pylist(), strict=True))
    assert known[b"whole.mp4"] == "ABCDEFGH"
    assert known[b"junk.mp4"] is known[b"memory.mp4"] is known[b"pipe.mp4"] is None
    assert len(known) + planned.counts.get("duplicate", 0) == 5


def test_any_folder(shared: Path) -> None:
    planned = instagram.plan("insta", folder=shared / "clips" / "videos", number=20)
    assert planned.counts["chosen"] == len(planned.requests) == 20
    assert planned.counts["found"] == 20 + planned.counts["not_chosen"]
    paths = planned.requests["path"].to_pylist()
    assert paths == sorted(paths)
