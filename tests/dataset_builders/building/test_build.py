import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import av
import pyarrow.parquet as pq
import pytest
from small_videos import make_video, tree

from dataset_builders import build_unlabeled_hybrid
from dataset_builders.media.presets import PRESETS
from dataset_builders.sources.folder import list_files
from pipeline.storage.columns import MANIFEST, on_disk, read_rows
from pipeline.storage.manifest import Manifest, content_hash

SCRIPT = Path(build_unlabeled_hybrid.__file__)


def build(dataset: Path, *folders: str, **options: object) -> int:
    arguments = [argument for folder in folders for argument in ("--folder", folder)]
    options = {"clips_per_shard": 4, "workers": 2, **options}
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", str(value)]
    return build_unlabeled_hybrid.main([*arguments, "--out", str(dataset)])


def rows_of(dataset: Path) -> list[dict]:
    return read_rows(dataset / "manifest.parquet").to_pylist()


def rejects_of(dataset: Path) -> list[dict]:
    return read_rows(dataset / "rejects.parquet").to_pylist()


def assert_sound(dataset: Path, folders: dict[str, Path]) -> None:
    """Every file is in one of the tables, once; every row's bytes are a clip with the frames that the row says."""
    rows, rejects = rows_of(dataset), rejects_of(dataset)
    seen = [(row["source"], row["path"]) for row in [*rows, *rejects]]
    assert sorted(seen) == sorted((name, path) for name, folder in folders.items() for path in list_files(os.fsencode(folder)))
    for row in rows:
        with (dataset / row["shard"]).open("rb") as shard:
            shard.seek(row["offset"])
            data = shard.read(row["size"])
        assert content_hash(data) == row["content_hash"]
        with av.open(io.BytesIO(data), metadata_errors="replace") as container:
            frames = list(container.decode(video=0))
        assert len(frames) == row["num_frames"]
        upright = (row["width"], row["height"]) if row["rotation"] % 180 == 0 else (row["height"], row["width"])
        assert (frames[0].width, frames[0].height) == upright


def test_a_build_end_to_end(videos: Path, undisturbed: Path) -> None:
    assert_sound(undisturbed, {"v": videos})
    table = pq.read_table(undisturbed / "manifest.parquet")
    assert table.schema.remove_metadata() == on_disk(MANIFEST).remove_metadata()
    rows = rows_of(undisturbed)
    assert len(rows) == 12
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert {row["path"]: row["reason"] for row in rejects_of(undisturbed)} == {
        b"empty.mp4": "not_video",
        b"notes.txt": "not_video",
    }
    assert sorted(path.name for path in (undisturbed / "shards").iterdir()) == [  # files 12 and 13 are rejects
        f"v-00000{number}.{extension}" for number in range(3) for extension in ("idx", "tar")
    ]
    description = json.loads((undisturbed / "dataset.json").read_bytes())
    assert description["sources"]["v"] == {
        "kind": "folder",
        "folders": {"v": str(videos)},
        "counts": {"files": 14},
        "notes": [],
        "expected_clips": 14,
        "dropped": {},
        "requested": 14,
        "taken": 12,
        "rejected": 2,
    }
    assert description["rejects"] == {"not_video": 2}
    assert [version["rows"] for version in description["versions"]] == [12]
    assert description["versions"][0]["fingerprint"] == Manifest(undisturbed).fingerprint
    assert "ffmpeg version" in description["versions"][0]["tools"]["ffmpeg"]


def test_a_finished_dataset_is_left_alone(undisturbed: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(undisturbed)
    times = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if ".build" not in path.parts}
    assert build(undisturbed, f"v={videos}") == 0
    assert "is complete: 12 clips, 2 rejects" in capsys.readouterr().out
    assert tree(undisturbed) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_one_worker_makes_the_same_bytes(undisturbed: Path, videos: Path, tmp_path: Path) -> None:
    assert build(tmp_path / "dataset", f"v={videos}", workers=1) == 0
    assert tree(tmp_path / "dataset") == tree(undisturbed)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(undisturbed: Path, videos: Path, tmp_path: Path) -> None:
    """SIGKILL, again and again, until the build gets through: some kills hit the start, some a shard, some the tables."""
    dataset = tmp_path / "dataset"
    options = ["--clips-per-shard", "4", "--workers", "2", "--out", str(dataset)]
    command = [sys.executable, str(SCRIPT), "--folder", f"v={videos}", *options]
    moments = random.Random(0)
    kills, done_after_kill = 0, set()
    while kills < 8:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            status = process.wait(moments.uniform(0.3, 1.4))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            done = {path.name for path in dataset.glob("shards/*.tar")}
            assert done >= done_after_kill  # a finished shard stays
            done_after_kill = done
        else:
            assert status == 0
            break
    else:
        assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert kills > 0
    assert tree(dataset) == tree(undisturbed)


def test_a_kill_between_any_two_steps(undisturbed: Path, videos: Path, tmp_path: Path) -> None:
    """The states that a kill can leave behind, made by hand: each is put right."""
    for lost in (
        [".build/finished.json"],
        [".build/finished.json", "dataset.json"],
        [".build/finished.json", "dataset.json", "manifest.parquet"],
        [".build/finished.json", "dataset.json", "manifest.parquet", "rejects.parquet", ".build/done/v-000003.json"],
        ["shards/v-000001.tar"],
    ):
        dataset = tmp_path / str(len(lost)) / lost[0].replace("/", "-")
        shutil.copytree(undisturbed, dataset)
        for name in lost:
            (dataset / name).unlink()
        (dataset / "shards" / ".v-000003.tar.tmp").write_bytes(b"half")
        (dataset / ".manifest.parquet.123.tmp").write_bytes(b"half")
        assert build(dataset, f"v={videos}") == 0
        assert tree(dataset) == tree(undisturbed), lost


def test_another_option_is_an_error_that_names_it(undisturbed: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value, old in (
        ("gop", 16, 32),
        ("short_side", 128, 256),
        ("preset", "copy", "h264-fast"),
        ("max_seconds", 30.0, 60),
        ("canvas", "352x256", ""),
    ):
        assert build(undisturbed, f"v={videos}", **{name: value}) == 2
        error = capsys.readouterr().err
        assert f"--{name.replace('_', '-')} was {old}" in error
        assert f"is now {value}" in error
    assert build(undisturbed, f"v={videos}", sampling="stride:4") == 2
    assert "sampling of source v was None and is now stride:4" in capsys.readouterr().err


def test_files_added_later_make_a_new_version(undisturbed: Path, videos: Path, tmp_path: Path, capsys) -> None:
    folder, dataset = tmp_path / "folder", tmp_path / "dataset"
    shutil.copytree(videos, folder)
    shutil.copytree(undisturbed, dataset)
    before = tree(dataset)
    (folder / "0.mp4").unlink()
    make_video(folder / "00-new.mp4", frames=19)
    (folder / "new.txt").write_text("no video")
    (tmp_path / "other").mkdir()
    make_video(tmp_path / "other" / "x.mp4")
    assert build(dataset, f"v={folder}", f"w={tmp_path / 'other'}") == 0
    said = capsys.readouterr().out
    assert "1 files of an earlier build are gone, such as '0.mp4'" in said
    assert re.search(r"^taken +14 clips \(2 new, 12 kept\), ", said, re.M)
    assert re.search(r"^took +00:\d\d\nnext +tubecell pretrain RECIPE --data \S+/dataset --out RUN\n\Z", said, re.M)
    assert re.search(r"^equal +\d+ clips have the bytes of another; --drop-duplicates", said, re.M)
    assert {name: content for name, content in tree(dataset).items() if name in before and name.startswith("shards/")} == {
        name: content for name, content in before.items() if name.startswith("shards/")
    }
    rows = rows_of(dataset)
    assert rows[:12] == rows_of(undisturbed)
    assert [(row["source"], row["path"], row["shard"]) for row in rows[12:]] == [
        ("v", b"00-new.mp4", "shards/v-000004.tar"),
        ("w", b"x.mp4", "shards/w-000000.tar"),
    ]
    assert Manifest(dataset, version=1).fingerprint == Manifest(undisturbed).fingerprint
    assert len(Manifest(dataset)) == 14
    description = json.loads((dataset / "dataset.json").read_bytes())
    assert [version["rows"] for version in description["versions"]] == [12, 14]
    assert description["sources"]["w"]["taken"] == 1
    assert build(dataset, f"v={folder}") == 0  # a source that is not named stays
    assert len(rows_of(dataset)) == 14


@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "h264-plain"])
def test_hostile_names(tmp_path: Path, preset: str) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=16)
    folder = tmp_path / "folder"
    names = [
        b"-i", b"-_Z6wFjXtGQ.mp4", b".hidden.mp4", b"UPPER.MP4", b"noextension", b"with space.mp4", b"line\nbreak.mp4",
        b"a" * 240 + b".mp4", b"colon:2.mp4", b"concat:x.mp4", b"comma,semi;tab\there.mp4", b"dots..in...name.mp4",
        b"hash#1 100%.mp4", b"%04d.mp4", b"*.mp4", b"it's \"quoted\".mp4", "é.mp4".encode(), "e\u0301.mp4".encode(),
        "прыжок_人物.mp4".encode(), b"latin-1-\xe9\xff.mp4", b"$(touch hacked).mp4", b"'; ls;'.mp4",
        b"playing \"squash\" or racquetball/clip 1.mp4", b"tying knot (not on a tie)/clip 1.mp4", b"\xff\xfe/clip.mp4",
    ]  # fmt: skip
    for name in names:
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        shutil.copyfile(os.fsencode(clip), path)
    assert build(tmp_path / "dataset", f"v={folder}", preset=preset) == 0
    assert_sound(tmp_path / "dataset", {"v": folder})
    assert sorted(row["path"] for row in rows_of(tmp_path / "dataset")) == sorted(names)
    assert sorted(name.name for name in tmp_path.iterdir()) == ["clip.mp4", "dataset", "folder"]


def test_copy_keeps_what_the_loader_must_honour(videos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    assert build(dataset, f"v={videos}", preset="copy") == 0
    assert_sound(dataset, {"v": videos})
    for row in rows_of(dataset):
        source = (videos / os.fsdecode(row["path"])).read_bytes()
        assert row["size"] == len(source)
        assert row["content_hash"] == content_hash(source)
    assert {row["codec"] for row in rows_of(dataset)} == {"h264", "mpeg4"}


def test_two_builds_at_once(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dataset_builders.building.jobs import BuildState

    with BuildState(tmp_path / "dataset"):
        assert build(tmp_path / "dataset", f"v={videos}") == 2
        assert "another build is writing" in capsys.readouterr().err
    assert build(tmp_path / "dataset", f"v={videos}") == 0


def test_errors_are_one_line(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    dataset = tmp_path / "dataset"
    for arguments, part in (
        ((dataset, f"v={tmp_path / 'nowhere'}"), "there is no folder"),
        ((dataset, str(videos)), "NAME=PATH"),
        ((dataset, f"a b={videos}"), "NAME=PATH"),
        ((dataset, f"v={videos}", f"v={tmp_path}"), "given twice"),
        ((dataset, f"v={tmp_path / 'empty'}"), "there is no file to take in"),
        ((tmp_path / "file", f"v={videos}"), "a folder is needed"),
        ((tmp_path / "file" / "below", f"v={videos}"), "Not a directory"),
    ):
        assert build(*arguments) == 2
        assert part in (error := capsys.readouterr().err)
        assert error.count("\n") == 1
    for option, value in (("sampling", "fast"), ("gop", 0), ("short_side", 8), ("workers", 0)):
        assert build(dataset, f"v={videos}", **{option: value}) == 2
        assert str(value) in (error := capsys.readouterr().err)
        assert error.count("\n") == 1
    assert not dataset.exists()


def test_a_folder_without_any_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no video")
    for _ in range(2):
        assert build(tmp_path / "dataset", f"v={tmp_path / 'folder'}") == 1
        capsys.readouterr()
    assert [reject["reason"] for reject in rejects_of(tmp_path / "dataset")] == ["not_video"]
    make_video(tmp_path / "folder" / "x.mp4")
    assert build(tmp_path / "dataset", f"v={tmp_path / 'folder'}") == 0


def test_time_limit(tmp_path: Path) -> None:
    """A file that takes too long is a reject, and its neighbours are taken."""
    (tmp_path / "folder").mkdir()
    make_video(tmp_path / "folder" / "long.mp4", size="640x360", frames=1500)
    make_video(tmp_path / "folder" / "short.mp4")
    assert build(tmp_path / "dataset", f"v={tmp_path / 'folder'}", time_limit=2) == 0
    assert [row["path"] for row in rows_of(tmp_path / "dataset")] == [b"short.mp4"]
    assert [reject["reason"] for reject in rejects_of(tmp_path / "dataset")] == ["timeout"]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_can_be_continued(videos: Path, tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes writing a shard fail as a full disk does; without it the build goes on."""
    dataset = tmp_path / "dataset"
    command = [sys.executable, str(SCRIPT), "--folder", f"v={videos}", "--out", str(dataset), "--clips-per-shard", "4"]
    limited = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, -1)); sys.argv = sys.argv[1:]; "
    limited += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", limited, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 2
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert_sound(dataset, {"v": videos})


def test_help_without_arguments() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert "--folder NAME=PATH" in done.stdout
    assert done.stderr == ""


def running_with(mark: str) -> list[str]:
    """Command lines of the processes that carry this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGKILL))]
)
def test_stopped_it_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("0.mp4", "1.mp4"):
        make_video(tmp_path / "folder" / name, size="640x360", frames=1500)
    command = [sys.executable, str(SCRIPT), "--folder", f"v={tmp_path / 'folder'}", "--out", str(tmp_path / "dataset")]
    mark = f"TUBECELL_TEST={tmp_path.name}-{os.getpid()}"
    environment = {**os.environ, **dict([mark.split("=")])}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        patience = time.monotonic() + 60
        while not any("fd:" in line for line in running_with(mark)) and time.monotonic() < patience:
            time.sleep(0.05)
        assert any("fd:" in line for line in running_with(mark))  # FFmpeg is at work
        process.send_signal(number)
        _, error = process.communicate(timeout=30)
    assert process.returncode == (130 if number is signal.SIGINT else -number)
    assert "Traceback" not in error
    assert number is not signal.SIGINT or "run the same command again" in error
    patience = time.monotonic() + 20
    while running_with(mark) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not running_with(mark)
    assert not list((tmp_path / "dataset").glob("shards/*.tar"))


@pytest.mark.slow
@pytest.mark.slow
def test_real_clips(shared: Path, tmp_path: Path) -> None:
    """All broken and all real clips; what a player shows is taken."""
    clips = shared / "clips"
    folders = {"broken": clips / "broken", "videos": clips / "videos"}
    assert build(tmp_path / "dataset", *(f"{name}={path}" for name, path in folders.items()), clips_per_shard=50) == 0
    assert_sound(tmp_path / "dataset", folders)
    rejects = {(row["source"], os.fsdecode(row["path"])): row["reason"] for row in rejects_of(tmp_path / "dataset")}
    assert rejects == {
        ("broken", "MANIFEST.tsv"): "not_video",
        ("broken", "audio_only.mp4"): "no_video_stream",
        ("broken", "decord_corrupted.mp4"): "damaged",
        ("broken", "five_frames.mp4"): "too_short",
        ("broken", "jpeg_renamed.mp4"): "not_video",
        ("broken", "midfile_garbage_64k.mp4"): "damaged",
        ("broken", "one_frame.mp4"): "too_short",
        ("broken", "text_renamed.mp4"): "not_video",
        ("broken", "truncated_faststart_half.mp4"): "truncated",
        ("broken", "truncated_moov_missing.mp4"): "truncated",
        ("broken", "zero_bytes.mp4"): "not_video",
        ("videos", "decord/corrupted.mp4"): "damaged",
        ("videos", "decord/video_0.mov"): "too_short",
        ("videos", "decord/video_180.mov"): "too_short",
        ("videos", "decord/video_270.mov"): "too_short",
        ("videos", "decord/video_90.mov"): "too_short",
        ("videos", "torchcodec/h265_video.mp4"): "too_short",
        ("videos", "torchcodec/test_non_zero_start.mp4"): "too_short",
    }
    # equally spaced frames are neither repeated nor lost: the true counts of the index, but for those resampled
    index = [line.split("\t") for line in (clips / "INDEX.tsv").read_text().splitlines()]
    truth = {line[0]: line[index[0].index("frames_decoded")] for line in index[1:]}
    for row in rows_of(tmp_path / "dataset"):
        if row["source"] == "videos":
            assert row["num_frames"] == int(truth[f"videos/{os.fsdecode(row['path'])}"]), row["path"]


@pytest.mark.slow
@pytest.mark.parametrize("how", [">&- 2>&- <&-", "2>&1 | true", ">/dev/full 2>&1"])
def test_a_build_that_nobody_hears(how: str, videos: Path, undisturbed: Path, tmp_path: Path) -> None:
    arguments = f"--folder v={videos} --clips-per-shard 4 --out {tmp_path / 'dataset'}"
    subprocess.run(f"{sys.executable} {SCRIPT} {arguments} {how}", shell=True, check=True)
    assert tree(tmp_path / "dataset") == tree(undisturbed)
