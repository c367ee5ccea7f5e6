import io
import json
import tarfile
from pathlib import Path

import pytest
from small_videos import make_clip, make_video

from dataset_builders.media.clip import EncodedClip
from dataset_builders.tars.writer import ShardWriter


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[EncodedClip]:
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for number in range(3):
        clip = make_clip(make_video(folder / f"{number}.mp4", frames=16 + number))
        assert isinstance(clip, EncodedClip)
        clip.row["key"] = f"key-{number}"
        made.append(clip)
    made.append(EncodedClip(b"x" * 1000, "avi", {**made[0].row, "key": "odd", "path": b"not-utf8-\xff"}))
    return made


def write(folder: Path, clips: list[EncodedClip]) -> list[dict]:
    (folder / "shards").mkdir(parents=True)
    writer = ShardWriter(folder, "name-000000")
    for clip in clips:
        writer.add(clip)
    return writer.finish()


def test_rows_and_index_say_where_the_bytes_are(tmp_path: Path, clips: list[EncodedClip]) -> None:
    rows = write(tmp_path, clips)
    data = (tmp_path / "shards" / "name-000000.tar").read_bytes()
    assert [row["key"] for row in rows] == ["key-0", "key-1", "key-2", "odd"]
    for row, clip in zip(rows, clips, strict=True):
        assert row["shard"] == "shards/name-000000.tar"
        assert data[row["offset"] : row["offset"] + row["size"]] == clip.data
    header, *samples = (tmp_path / "shards" / "name-000000.idx").read_text().splitlines()
    assert header == "v1.2 4"
    for line, clip in zip(samples, clips, strict=True):
        words = line.split(" ")
        parts = [words[start : start + 4] for start in range(0, len(words), 4)]
        assert {extension for extension, *_ in parts} == {"json", clip.extension}
        for extension, offset, size, name in parts:
            assert name == f"{clip.row['key']}.{extension}"
            assert int(offset) % 512 == 0  # DALI refuses others
            content = data[int(offset) : int(offset) + int(size)]
            assert content == clip.data if extension == clip.extension else json.loads(content)["key"] == clip.row["key"]


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_webdataset_reader_can_use_it(tmp_path: Path, clips: list[EncodedClip]) -> None:
    """(webdataset's own reader leaves the file open, hence the filters.)"""
    import webdataset

    write(tmp_path, clips[:3])
    samples = list(webdataset.WebDataset(str(tmp_path / "shards" / "name-000000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["key-0", "key-1", "key-2"]
    assert [sample["mp4"] for sample in samples] == [clip.data for clip in clips[:3]]
    assert [json.loads(sample["json"])["num_frames"] for sample in samples] == [16, 17, 18]


def test_bytes_depend_on_the_clips_alone(tmp_path: Path, clips: list[EncodedClip]) -> None:
    write(tmp_path / "a", clips)
    write(tmp_path / "b", clips)
    for name in ("name-000000.tar", "name-000000.idx"):
        assert (tmp_path / "a" / "shards" / name).read_bytes() == (tmp_path / "b" / "shards" / name).read_bytes()
    with tarfile.open(fileobj=io.BytesIO((tmp_path / "a" / "shards" / "name-000000.tar").read_bytes())) as tar:
        assert {(member.mtime, member.uid, member.gid, member.mode, member.uname) for member in tar} == {
            (0, 0, 0, 0o644, "tubecell")
        }


def test_a_shard_is_whole_or_not_there(tmp_path: Path, clips: list[EncodedClip]) -> None:
    (tmp_path / "shards").mkdir()
    writer = ShardWriter(tmp_path, "name-000000")
    writer.add(clips[0])
    assert not list(tmp_path.glob("shards/*.tar"))
    writer.abandon()
    assert not list(tmp_path.glob("shards/.*"))
    assert ShardWriter(tmp_path, "name-000001").finish() == []  # nothing taken
    assert not list(tmp_path.glob("shards/*")) + list(tmp_path.glob("shards/.*"))
