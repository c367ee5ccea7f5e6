from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_videos import make_video

from dataset_builders import build_dataset
from pipeline.storage.columns import read_rows


@pytest.mark.parametrize("kind", ["something", "kinetics"])
def test_a_broken_file_does_not_hide_the_sound_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    """The first two of three files of one video are broken; a second build finds nothing to do."""
    sound, name = (
        make_video(tmp_path / "sound.mp4", frames=20),
        "-2NeSaQieHk_000010_000020.mp4" if kind == "kinetics" else "7.mp4",
    )
    for folder, data in (("a", b""), ("b", sound.read_bytes()[:600]), ("c", sound.read_bytes())):
        (tmp_path / "videos" / folder).mkdir(parents=True)
        (tmp_path / "videos" / folder / name).write_bytes(data)
    (tmp_path / "train.csv").write_text("label,youtube_id,time_start,time_end,split\nyoga,-2NeSaQieHk,10,20,train\n")
    (tmp_path / "something-train.csv").write_text("7;yoga\n")
    lists = "train.csv" if kind == "kinetics" else "something-train.csv"
    flag = "--k400" if kind == "kinetics" else "--ssv1"
    command = [flag, str(tmp_path / "videos"), str(tmp_path / lists), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert build_dataset.main(command) == 0
    assert "another file of the same video is there: these are tried now" in capsys.readouterr().out
    (clip,) = read_rows(tmp_path / "out" / "manifest.parquet").to_pylist()
    assert (clip["path"].decode(), clip["label"]) == (f"c/{name}", "yoga")
    rejects = read_rows(tmp_path / "out" / "rejects.parquet")
    assert sorted(rejects["path"].to_pylist()) == [f"{folder}/{name}".encode() for folder in "ab"]
    assert not len(pq.read_table(tmp_path / "out" / "dropped.parquet"))
    assert build_dataset.main(command) == 0
    assert "nothing to do" in capsys.readouterr().out
