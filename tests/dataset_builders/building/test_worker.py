"""What no file is to blame for: its folder is gone, or the storage that its tar is in does not let it be read."""

import os
import tarfile
from pathlib import Path

import pytest

from dataset_builders.building.worker import Worker
from dataset_builders.media.clip import ClipRequest, Reject
from dataset_builders.media.presets import EncodeOptions
from dataset_builders.media.rejects import Reason
from pipeline.storage import files
from pipeline.storage.remote import StorageError
from tests.pipeline.s3_server import BUCKET, S3Server


def made(folder: Path | str, path: str, kind: str = "video") -> list[object]:
    request = ClipRequest(os.fsencode(folder), os.fsencode(path), "own", "key", kind=kind)
    return list(Worker("/nonexistent", "/tmp", EncodeOptions())(request))


def test_a_file_that_vanished_is_rejected_and_a_disk_that_vanished_stops_the_build(tmp_path: Path) -> None:
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "other.mp4").touch()
    [reject] = made(tmp_path, "class/gone.mp4")
    assert isinstance(reject, Reject) and reject.reason is Reason.UNREADABLE
    (tmp_path / "class").rename(tmp_path.with_name("away"))
    with pytest.raises(StorageError, match="it is empty; is it mounted"):
        made(tmp_path, "class/other.mp4")
    tmp_path.rmdir()
    with pytest.raises(StorageError, match=r"No such file or directory; is it mounted"):
        made(tmp_path, "class/other.mp4")


def test_expired_credentials_reject_no_member_of_a_tar(s3: S3Server, tmp_path: Path) -> None:
    tar, folder = tmp_path / "a.tar", f"s3://{BUCKET}/members"
    with tarfile.open(tar, "w") as opened:
        (tmp_path / "x.mp4").write_bytes(b"no video")
        opened.add(tmp_path / "x.mp4", "x.mp4")
    files.upload(tar, f"{folder}/a.tar")
    [reject] = made(folder, "a.tar/x.mp4", "member")
    assert isinstance(reject, Reject) and reject.reason is Reason.NOT_VIDEO
    s3.inject_everywhere("expired")
    with pytest.raises(StorageError, match=f"{folder}/a.tar: the credentials have expired"):
        made(folder, "a.tar/x.mp4", "member")
