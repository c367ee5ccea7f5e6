"""Features of sliding windows: the same as of each window alone, whoever makes them, and whatever happens meanwhile."""

import gc
import json
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import interpolate

from model.classifier import VideoClassifier
from model.config import MODELS
from model.initialization import initialise
from model.video_encoder import VideoEncoder, load_encoder
from model.videomae import VideoMAE
from model.weights import metadata_of
from pipeline.decoding.decode import decode_frames
from pipeline.decoding.video_file import read_video, understood
from pipeline.sampling.frames import resampled_frames
from pipeline.storage.manifest import Manifest
from pipeline.storage.shards import ShardReader
from tests.pipeline.encoding import encode, numbered_frame
from tests.train.trainers import start
from train import extract_features
from train.checkpoint.weights import save_weights
from train.features.folder import FeatureFolder
from train.features.stream import Closed, Opened, Window, WindowStream, _Taker
from train.features.videos import ListedVideo, opener, shares
from train.features.windows import FrameView, Windows

CONFIG = replace(MODELS["tiny"], input_size=32, encoder_depth=2)  # views of 8 frames
SIZE = 32, 32
LENGTHS = {"a": 47, "b": 30, "c": 23}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, VideoEncoder]:
    model = VideoClassifier(CONFIG, 3)
    initialise(model, seed=0)
    with torch.no_grad():
        model.fc_norm.weight.normal_(generator=torch.Generator().manual_seed(1))
    file = tmp_path_factory.mktemp("weights") / "classifier.safetensors"
    save_weights(file, dict(model.named_parameters()), metadata_of(CONFIG))
    return file, load_encoder(file)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos, one that is too short for a window of 8, and two that are none."""
    folder = tmp_path_factory.mktemp("videos")
    for number, (name, length) in enumerate([*LENGTHS.items(), ("short", 7)]):
        frames = [numbered_frame(10 * number + place) for place in range(length)]
        (folder / f"{name}.mp4").write_bytes(encode(frames, gop=12))
    (folder / "damaged.mp4").write_bytes(b"no video")
    (folder / "notes.md").write_text("none at all, and not asked about")
    return folder


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of a command, which nothing here needs: 0.3 s each of the 20."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


def extract(videos: Path, weights: tuple[Path, VideoEncoder], out: Path, *options: str, code: int = 0) -> dict[str, np.ndarray]:
    words = [str(videos), "--init", str(weights[0]), "--out", str(out), "--step", "1", "--stride", "3", *options]
    assert extract_features.main(words) == code
    return {file.stem: np.load(file) for file in out.glob("*.npy")}


def test_windows_of_videos_that_are_short_resampled_or_uneven(videos: Path) -> None:
    windows = Windows(num_frames=8, step=2, stride=3)
    assert windows.starts(14).tolist() == [] and windows.starts(15).tolist() == [0]  # frames 0, 2 ... 14
    assert windows.starts(20).tolist() == [0, 3] and windows.starts(21).tolist() == [0, 3, 6]
    for rate in (30, 30000 / 1001):
        times = 1.5 + np.arange(400) / rate
        assert np.array_equal(resampled_frames(times, 1.5 + 400 / rate, rate), np.arange(400))
        assert np.array_equal(resampled_frames(times, 1.5 + 400 / rate, rate / 2), np.arange(0, 400, 2))
        assert np.array_equal(resampled_frames(times, 1.5 + 400 / rate, rate * 2), np.repeat(np.arange(400), 2))
    uneven = np.array([0.0, 0.1, 0.2, 0.6, 0.7])
    assert resampled_frames(uneven, 1.0, 10.0).tolist() == [0, 1, 2, 2, 2, 2, 3, 4, 4, 4]
    short = read_video(videos / "short.mp4")
    assert Windows(8, 2, 3, repeat=True).frames(short).tolist() == [[0, 2, 4, 6, 6, 6, 6, 6]]
    assert Windows(8, 1, 4, fps=60.0).frames(short).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3], [2, 2, 3, 3, 4, 4, 5, 5]]
    assert Windows(8, 1, 4).rate(short) == pytest.approx(30) and Windows(8, 1, 4, fps=7.0).rate(short) == 7
    with pytest.raises(ValueError, match="too short: 7 frames, and a window has 8"):
        Windows(8, 1, 4).frames(short)


@torch.no_grad()
def test_features_are_those_of_each_window_alone(
    weights: tuple[Path, VideoEncoder], videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For any batch, bit for bit; windows of several videos lie in one."""
    encoder = weights[1]
    found = extract(videos, weights, tmp_path / "2", "--batch", "2", code=1)
    said = capsys.readouterr()
    assert f"of 3 of 5 videos; 28 windows in {tmp_path / '2'}" in said.out
    assert said.err.splitlines() == [
        f"extract-features: {videos / 'damaged.mp4'}: FFmpeg finds no video in it: Invalid data found when processing input",
        f"extract-features: {videos / 'short.mp4'}: too short: 7 frames, and a window has 8; --short repeat takes it all the "
        "same",
    ]
    assert {name: len(each) for name, each in found.items()} == {"a": 14, "b": 8, "c": 6}
    for batch, workers in (("1", "1"), ("5", "3")):
        other = extract(videos, weights, tmp_path / batch, "--batch", batch, "--workers", workers, code=1)
        assert {name: each.tobytes() for name, each in other.items()} == {name: each.tobytes() for name, each in found.items()}
    tokens = extract(videos, weights, tmp_path / "tokens", "--tokens", "--dtype", "fp16", code=1)
    for name, features in found.items():
        assert features.shape == (len(features), CONFIG.encoder_dim) and features.dtype == np.float32
        video = read_video(videos / f"{name}.mp4")
        for number in range(len(features)):
            views = torch.from_numpy(video.views(3 * number + np.arange(8)[None], video.boxes(SIZE, 1), SIZE))
            own = encoder.forward_head(encoder.forward_features(views), pre_logits=True)[0]
            assert np.array_equal(features[number], own.numpy())
        assert tokens[name].dtype == np.float16 and tokens[name].shape[:2] == (len(features), 4 * 4 * 4)
        mean = encoder.fc_norm(torch.from_numpy(tokens[name].astype(np.float32)).mean(1))
        assert np.allclose(mean, features, atol=0.02), "of the tokens' mean fc_norm is the pooled row"
    lines = {line["video"]: line for line in map(json.loads, (tmp_path / "5" / "videos.jsonl").read_text().splitlines())}
    facts = {"frames": 47, "fps": pytest.approx(30), "seconds": pytest.approx(47 / 30), "windows": 14}
    source = videos / "a.mp4"
    video = ListedVideo("a", str(source), source.stat().st_size)
    assert lines["a"] == {"video": "a", "source": str(source), "bytes": video.bytes, "digest": video.digest(), **facts}
    assert (lines["short"]["reason"], lines["damaged"]["reason"]) == ("too_short", "damaged")
    assert sorted(file.name for file in (tmp_path / "5").iterdir()) == [
        "a.npy",
        "b.npy",
        "c.npy",
        "features.json",
        "videos.jsonl",
    ]


@torch.no_grad()
def test_a_preset_is_the_official_script(weights: tuple[Path, VideoEncoder], videos: Path, tmp_path: Path) -> None:
    """Every window decoded alone, divided by 255, squashed without antialiasing, one at a time; here of 8 frames."""
    words = [str(videos / "a.mp4"), "--init", str(weights[0]), "--window", "8", "--format", "parquet"]
    assert extract_features.main([*words, "--preset", "thumos14", "--out", str(tmp_path)]) == 0
    assert extract_features.main([*words, "--preset", "fineaction", "--out", str(tmp_path / "16")]) == 0
    table, sparse = (pq.read_table(folder / "a.parquet") for folder in (tmp_path, tmp_path / "16"))
    video = read_video(videos / "a.mp4")
    assert table["first_frame"].to_pylist() == [*range(0, 40, 4)] and sparse["first_frame"].to_pylist() == [0, 16, 32]
    assert np.allclose(table["begin"], np.arange(0, 40, 4) / 30) and np.allclose(table["end"], np.arange(8, 48, 4) / 30)
    features = np.array(table["features"].to_pylist(), np.float32)
    assert np.array_equal(np.array(sparse["features"].to_pylist(), np.float32), features[[0, 4, 8]])
    assert isinstance(video.data, bytes)
    for start_, row in zip(range(0, 40, 4), features, strict=True):
        frames = torch.from_numpy(decode_frames(video.clip, video.data, np.arange(start_, start_ + 8)))
        clip_CTHW = interpolate(frames.permute(3, 0, 1, 2) / 255, SIZE, mode="bilinear", align_corners=False)
        own = weights[1].forward_head(weights[1].forward_features(clip_CTHW[None]), pre_logits=True)[0]
        assert np.allclose(row, own, atol=1e-5)
    asked = json.loads((tmp_path / "features.json").read_text())["features"]
    assert (asked["window"], asked["precision"], asked["normalise"]) == (8, "fp32", "none"), "a flag goes before the preset"


@torch.no_grad()
def test_of_an_official_file_of_a_pretrained_model(videos: Path, tmp_path: Path) -> None:
    """It says nothing of heads; every token is normalised, then the mean taken."""
    model = VideoMAE(CONFIG)
    initialise(model, seed=0)
    torch.save({"model": dict(model.named_parameters())}, tmp_path / "pretrained.pth")
    hints = ["--heads", str(CONFIG.encoder_heads), "--input-size", "32", "--num-frames", "8"]
    place = [str(videos / "c.mp4"), "--init", str(tmp_path / "pretrained.pth"), "--out", str(tmp_path / "out")]
    assert extract_features.main([*place, *hints, "--window", "4"]) == 0
    encoder = load_encoder(tmp_path / "pretrained.pth", encoder_heads=CONFIG.encoder_heads, input_size=32, num_frames=8)
    video = read_video(videos / "c.mp4")
    views = torch.from_numpy(video.views(np.arange(0, 16, 4)[None], video.boxes(SIZE, 1), SIZE))
    assert np.array_equal(np.load(tmp_path / "out" / "c.npy"), encoder.forward_features(views).mean(1).numpy())


def test_of_a_dataset(weights: tuple[Path, VideoEncoder], dataset: Path, tmp_path: Path) -> None:
    found = extract(dataset, weights, tmp_path / "out", "--split", "train", "--stride", "20", "--normalise", "none")
    manifest = Manifest(dataset)
    clip = manifest.clip(7)
    assert len(found) == 12 and clip.key in found
    video = understood(clip.key, ShardReader(dataset).read(clip))
    starts = np.arange(0, clip.num_frames - 7, 20)
    views = video.views(starts[:, None] + np.arange(8), np.repeat(video.boxes(SIZE, 1), len(starts), 0), SIZE)
    with torch.no_grad():
        own = weights[1].forward_head(weights[1].forward_features(torch.from_numpy(views).float() / 255), pre_logits=True)
    assert np.array_equal(found[clip.key], own.numpy())


def test_every_frame_is_decoded_once_and_few_are_kept(videos: Path) -> None:
    seen: list[int] = []

    class Counted(FrameView):
        def of(self, video: Any) -> Any:
            view = super().of(video)
            return lambda frame: seen.append(len(seen)) or view(frame)

    listed = [ListedVideo("a", str(videos / "a.mp4"), 0)]
    stream = WindowStream(listed, opener([]), Windows(8, 1, 2), Counted(64, "squash", "none"), threads=1, ahead=1)
    with stream:
        events = iter(stream)
        assert isinstance(next(events), Opened)
        windows = [next(events) for _ in range(3)]
        time.sleep(0.1)
        assert len(seen) <= 4 + 2 * 3 + 8, "it is not decoded further ahead than was asked"
        windows += [*events]
    assert len(seen) == 46 and len(windows) == 21 and isinstance(windows.pop(), Closed)
    assert [window.number for window in windows if isinstance(window, Window)] == [*range(20)]
    assert windows[0].views[2] is windows[1].views[0], "windows share their frames"  # type: ignore[union-attr]


def test_decoding_that_begins_anew_gives_all_windows_again() -> None:
    given: list[Window] = []
    taker = _Taker(ListedVideo("a", "a", 0), np.arange(4)[:, None] + np.arange(3), torch.from_numpy, given.append)
    for place in [0, 1, 2, 3, *range(6)]:
        taker(place, np.full((1, 1, 3), place + 10 * len(given)))
    assert [window.number for window in given] == [0, 1, 0, 1, 2, 3] and not taker._kept
    assert [int(view[0, 0, 0]) for view in given[2].views] == [20, 21, 22], "of the second time alone"


def test_what_is_there_is_kept_and_what_is_other_is_refused(
    weights: tuple[Path, VideoEncoder],
    videos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, keep, kept = tmp_path / "out", FeatureFolder.keep, list[str]()

    def keeping(self: FeatureFolder, opened: Opened, features: np.ndarray) -> None:
        if len(kept) == 1:
            raise KeyboardInterrupt
        keep(self, opened, features)
        kept.append(opened.video.name)

    monkeypatch.setattr(FeatureFolder, "keep", keeping)
    with pytest.raises(KeyboardInterrupt):
        extract(videos, weights, out)
    monkeypatch.setattr(FeatureFolder, "keep", keep)
    assert {file.name for file in out.iterdir()} == {"features.json", f"{kept[0]}.npy", "videos-0.jsonl"}
    before = (out / f"{kept[0]}.npy").stat().st_mtime_ns
    with (out / "videos-0.jsonl").open("a") as lines:
        lines.write('{"video": "b", "wind')  # killed at it
    found = extract(videos, weights, out, "--batch", "3", code=1)
    assert "5 videos, of which 1 were there" in capsys.readouterr().out and len(found) == 3
    assert (out / f"{kept[0]}.npy").stat().st_mtime_ns == before
    straight = extract(videos, weights, tmp_path / "straight", code=1)
    assert all(np.array_equal(found[name], straight[name]) for name in LENGTHS)
    assert (out / "videos.jsonl").read_text() == (tmp_path / "straight" / "videos.jsonl").read_text()

    (tmp_path / "list.txt").write_text(f"{videos / 'a.mp4'}\n\n{tmp_path / 'other' / 'b.mp4'}\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.mp4").write_bytes(bytes((videos / "b.mp4").stat().st_size))  # as long, and another
    (tmp_path / "foreign").mkdir()
    np.save(tmp_path / "foreign" / "a.npy", 0)
    capsys.readouterr()
    assert len(extract(videos, weights, out, "--short", "repeat", code=1)) == 4, "what was rejected is tried again"
    assert "5 videos, of which 3 were there" in capsys.readouterr().out
    for place, options, told in (
        (videos, ["--stride", "4"], f"{out} has other features (stride 3 instead of 4); give another --out, or remove it"),
        (videos, ["--out", str(tmp_path / "foreign")], "a.npy is there, and no features.json that says what it is of"),
        (tmp_path / "list.txt", [], f"b.npy is of {videos / 'b.mp4'} ("),
        (videos, ["--num-frames", "16", "--window", "8"], f"{out} has other features (model {{"),
        (videos, ["--window", "7"], "--window 7 must be a multiple of 2, the frames of a token"),
        (videos, ["--stride", "0"], "--stride 0 must be at least 1"),
        (videos, ["--fps", "-1"], "--fps -1 must be more than 0 and at most 1000"),
        (videos, ["--split", "val"], f"--split val is of a dataset, and {videos} is none"),
        (tmp_path / "foreign", [], "there is no video; known are files that end with .mp4, "),
    ):
        extract(place, weights, out, *options, code=2)
        assert told in (said := capsys.readouterr().err) and said.count("\n") == 1, said
    words = [str(videos), str(tmp_path / "other"), "--init", str(weights[0]), "--out", str(tmp_path / "new")]
    assert extract_features.main(words) == 2 and "are both called b, and so would their features be" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_features_lie_as_the_videos_do(weights: tuple[Path, VideoEncoder], videos: Path, tmp_path: Path) -> None:
    for motion in ("left", "right"):
        (tmp_path / "own" / motion).mkdir(parents=True)
        shutil.copy(videos / "b.mp4", tmp_path / "own" / motion)
    extract(tmp_path / "own", weights, tmp_path / "out", "--stride", "8")
    extract(tmp_path / "own", weights, tmp_path / "out", "--stride", "8")
    left, right = (np.load(tmp_path / "out" / motion / "b.npy") for motion in ("left", "right"))
    assert np.array_equal(left, right) and len(left) > 1


def test_ranks_share_the_videos_by_bytes() -> None:
    listed = [ListedVideo(name, name, size) for name, size in zip("abcdef", (1, 9, 2, 0, 4, 3), strict=True)]
    parts = [[video.name for video in part] for part in shares(listed, 2)]
    assert parts == [["b", "a", "d"], ["e", "f", "c"]]
    assert sorted(video.name for part in shares(listed, 7) for video in part) == [*"abcdef"]


def slowly(rank: int) -> None:
    """A moment after each video, in which to be killed."""
    keep = FeatureFolder.keep

    def keeping(self: FeatureFolder, opened: Opened, features: np.ndarray) -> None:
        keep(self, opened, features)
        time.sleep(0.2)

    FeatureFolder.keep = keeping  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "after"), [(1, 2), (2, 1)])
def test_killed_it_goes_on_with_other_ranks(
    ranks: int, after: int, weights: tuple[Path, VideoEncoder], dataset: Path, tmp_path: Path
) -> None:
    given = [str(dataset), "--init", str(weights[0]), "--step", "1", "--stride", "4"]
    how: Any = {"program": "train.extract_features", "given": given}
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    job = start(None, straight, ranks=after, **how)
    assert job.wait() == after * [0], job.text()
    job = start(None, killed, ranks=ranks, fault=slowly, **how)
    while len([*killed.glob("*.npy")]) < 4:
        assert job.processes[0].is_alive(), job.text()
        time.sleep(0.005)
    assert job.send(signal.SIGKILL).wait() == ranks * [-signal.SIGKILL]
    assert not (killed / "videos.jsonl").exists()
    job = start(None, killed, ranks=after, **how)
    assert job.wait() == after * [0] and "12 videos, of which " in job.text(), job.text()
    names = {file.name for file in straight.iterdir()}
    assert len(names) == 12 + 2 and names == {file.name for file in killed.iterdir()}
    assert all((straight / name).read_bytes() == (killed / name).read_bytes() for name in names)
