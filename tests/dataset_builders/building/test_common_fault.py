"""What hits every file is told once and blamed on none; what hits many is not taken for it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_videos import tree
from some_unreadable import NAMES, build

from dataset_builders import build_unlabeled_hybrid
from dataset_builders.building import encode
from dataset_builders.building.jobs import BuildState, Hold
from dataset_builders.executors import Failure
from dataset_builders.media.ffmpeg_process import ffmpeg_path
from dataset_builders.media.rejects import Reason

pytestmark = pytest.mark.usefixtures("halfway")
TIMEOUT = Failure(Reason.TIMEOUT, "took longer than 1 s")


def test_a_mount_that_is_away(links: Path, mount: Callable[..., None], tmp_path: Path, capsys) -> None:
    dataset = tmp_path / "dataset"
    for _ in range(2):
        assert build(dataset, links) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "all 10 files that were tried fail: unreadable, such as '00.mp4': No such file or directory" in error
        assert f"Is what holds {str(links)!r} mounted" in error
        assert not list((dataset / ".build" / "done").iterdir())
    mount(*NAMES)
    assert build(dataset, links) == 0
    assert build(tmp_path / "undisturbed", links) == 0
    assert tree(dataset) == tree(tmp_path / "undisturbed")


def test_a_start_of_which_nothing_came_binds_nobody(links: Path, mount: Callable[..., None], tmp_path: Path, capsys) -> None:
    """Options, sources and files may be others at the second try; but not under a share, nor once a shard is there."""
    dataset, other = tmp_path / "dataset", tmp_path / "other"
    assert build(dataset, links) == 2
    other.mkdir()
    for name in NAMES[:5]:
        (other / name).symlink_to(links / name)
    mount(*NAMES)
    changed = ["--min-frames", "17"]
    assert build(dataset, other, *changed, "--job", "1/2") == 2
    assert "--min-frames was 16 and is now 17" in capsys.readouterr().err
    with BuildState(dataset, Hold.SHARE):
        assert build(dataset, other, *changed) == 2
        assert "another build is writing" in capsys.readouterr().err
        assert build(dataset, links, "--job", "1/9") == 0
    assert build(dataset, other, *changed) == 2  # that share made one
    assert "--min-frames was 16 and is now 17" in capsys.readouterr().err
    shutil.rmtree(dataset)
    mount()
    assert build(dataset, links) == 2
    mount(*NAMES)
    assert build(dataset, other, *changed) == 0
    assert build(tmp_path / "undisturbed", other, *changed) == 0
    assert tree(dataset) == tree(tmp_path / "undisturbed")


def test_a_mount_that_goes_away_in_the_middle(links: Path, mount, tmp_path: Path, capsys, monkeypatch) -> None:
    mount(*NAMES)
    for number in range(10):
        (links / f"1{number}.mp4").symlink_to(tmp_path / "mount" / f"0{number}.mp4")
    inner = encode.map_ordered

    def work(function, requests, *limits):
        for number, result in enumerate(inner(function, requests, *limits)):
            yield result
            if number == 9:  # two results a request: five files
                mount()

    monkeypatch.setattr(encode, "map_ordered", work)
    assert build(tmp_path / "dataset", links) == 2
    assert "all 20 files that were tried fail: unreadable" in capsys.readouterr().err
    monkeypatch.setattr(encode, "map_ordered", inner)
    mount(*NAMES)
    assert build(tmp_path / "dataset", links) == 0
    assert build(tmp_path / "undisturbed", links) == 0
    assert tree(tmp_path / "dataset") == tree(tmp_path / "undisturbed")


def test_many_that_fail_are_not_all(links: Path, mount, tmp_path: Path) -> None:
    mount(NAMES[-1])
    assert build(tmp_path / "dataset", links) == 0
    assert pq.read_table(tmp_path / "dataset" / "manifest.parquet").num_rows == 1
    assert pq.read_table(tmp_path / "dataset" / "rejects.parquet").num_rows == 9


def test_three_files_are_told_of_one_by_one(links: Path, tmp_path: Path, capsys) -> None:
    for name in NAMES[3:]:
        (links / name).unlink()
    assert build(tmp_path / "dataset", links) == 1
    printed = capsys.readouterr()
    assert "unreadable          3  such as '00.mp4': No such file or directory" in printed.out
    assert "3 of these may lie with the machine: the same command tries them again" in printed.out
    assert "there is no clip to train on" in printed.err


def test_a_limit_that_nothing_keeps(links: Path, mount, halfway: dict, tmp_path: Path, capsys) -> None:
    mount(*NAMES)
    halfway.update({os.fsencode(name): (0, TIMEOUT) for name in NAMES})
    assert build(tmp_path / "dataset", links, "--time-limit", "1") == 2
    assert (
        "all 8 files that were tried fail: timeout, such as '00.mp4': took longer than 1 s. Raise --time-limit."
        in capsys.readouterr().err
    )
    del halfway[b"09.mp4"]
    assert build(tmp_path / "dataset", links, "--time-limit", "1") == 0
    assert pq.read_table(tmp_path / "dataset" / "rejects.parquet")["reason"].to_pylist() == ["timeout"] * 9
    halfway.clear()
    assert build(tmp_path / "dataset", links, "--time-limit", "9") == 0
    assert pq.read_table(tmp_path / "dataset" / "manifest.parquet").num_rows == 10


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """To call with a shell script, which is then the ffmpeg program; FFMPEG in it is the real one."""
    real = ffmpeg_path()

    def change(script: str) -> Path:
        file = tmp_path / f"ffmpeg-{len(list(tmp_path.glob('ffmpeg-*')))}"
        file.write_text("#!/bin/sh\n" + script.replace("FFMPEG", real))
        file.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(file))
        ffmpeg_path.cache_clear()
        return file

    yield change
    ffmpeg_path.cache_clear()


def mjpeg(dataset: Path, links: Path) -> int:
    arguments = ["--folder", f"v={links}", "--preset", "mjpeg", "--out", str(dataset), "--clips-per-shard", "50"]
    return build_unlabeled_hybrid.main(arguments)


OLD = """
case "$*" in
  -version) echo "ffmpeg version 4.2.7 Copyright (c) 2000-2022 the FFmpeg developers";;
  *) echo "[error] Unrecognized option 'fps_mode'." >&2; exit 1;;
esac
"""


def test_a_program_that_cannot_do_it_is_told_before_anything_is_encoded(
    links: Path, mount: Callable[..., None], program: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mount(*NAMES[:2])

    def error() -> str:
        assert mjpeg(tmp_path / "dataset", links) == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1 and "IMAGEIO_FFMPEG_EXE" in told
        assert not (tmp_path / "dataset").exists()
        return told

    file = program(OLD)
    told = error()
    assert "preset mjpeg: encode_failed, FFmpeg ended with status 1; FFmpeg: Unrecognized option 'fps_mode'." in told
    assert f"{file} is ffmpeg version 4.2.7" in told
    program("exit 3")
    assert "is no ffmpeg: asked for its version it ends with status 3" in error()
    program("echo hello")
    assert "is no ffmpeg" in error()
    program("").chmod(0o644)
    assert "cannot be run: Permission denied" in error()
    program("").unlink()
    assert "cannot be run: No such file or directory" in error()


def test_a_program_that_fails_later(
    links: Path,
    mount: Callable[..., None],
    program: Callable[[str], Path],
    halfway: dict[bytes, tuple[int, Failure]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After eight files in a row one of our own is tried; if that can be made, it lies with the files."""
    mount(*NAMES)
    calls = tmp_path / "calls"  # its version, ours, two files
    program(f'echo >> {calls}; [ "$(wc -l < {calls})" -lt 5 ] || {{ echo "[error] no room" >&2; exit 1; }}; exec FFMPEG "$@"')
    assert mjpeg(tmp_path / "dataset", links) == 2
    assert (
        "v: no clip can be made, not even of a picture of our own (encode_failed, FFmpeg ended with status 1; FFmpeg: no room"
        in (capsys.readouterr().err)
    )
    assert not list((tmp_path / "dataset" / ".build" / "done").iterdir())
    program('exec FFMPEG "$@"')
    halfway.update({os.fsencode(name): (0, Failure(Reason.CRASH, "its process ended with SIGSEGV")) for name in NAMES[:9]})
    assert build(tmp_path / "another", links) == 0
    assert pq.read_table(tmp_path / "another" / "rejects.parquet")["reason"].to_pylist() == ["crash"] * 9


def test_a_full_disk(
    links: Path,
    mount: Callable[..., None],
    halfway: dict[bytes, tuple[int, Failure]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """There may be room for a small clip of our own, and none for those of long videos."""
    mount(*NAMES)
    full = Failure(Reason.ENCODE_FAILED, "FFmpeg ended with status 228; FFmpeg: Error muxing: No space left on device")
    halfway.update({os.fsencode(name): (0, full) for name in NAMES[2:]})
    assert build(tmp_path / "dataset", links) == 2
    told = capsys.readouterr().err
    assert "v: 8 files in a row fail, such as '02.mp4'" in told
    assert f"No space left on device, in {tmp_path / 'dataset' / '.build'}. Put that right" in told
    halfway.clear()
    assert build(tmp_path / "dataset", links) == 0
    assert build(tmp_path / "undisturbed", links) == 0
    assert tree(tmp_path / "dataset") == tree(tmp_path / "undisturbed")
