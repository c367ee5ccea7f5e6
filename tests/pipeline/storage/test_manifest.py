import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.manifest import Manifest, parse_sampling
from tests.manifest_rows import row, write_rows

ROWS = [row(i) for i in range(5)]


def test_round_trip(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS, [{"path": b"x", "source": "made-up", "reason": "too_short", "detail": "3 frames"}])
    opened = Manifest(tmp_path)
    assert len(opened) == 5
    assert opened.num_frames.tolist() == [50, 51, 52, 53, 54]
    assert opened.stride.tolist() == [0, 4, 0, 4, 0]
    assert opened.interval.tolist() == [0.125, 0, 0.125, 0, 0.125]
    assert (opened.split.tolist(), opened.splits) == ([0] * 5, ["train"])
    clip = opened.clip(3)
    assert (clip.key, clip.offset, clip.size, clip.keyframes) == ("clip-3", 1536, 403, (0, 32))
    table = pq.read_table(tmp_path / "manifest.parquet")
    assert (table["path"][0].as_py(), table["path_bytes"][0].as_py()) == (r"not utf-8 \xff.mp4", b"not utf-8 \xff.mp4")
    assert pq.read_table(tmp_path / "rejects.parquet")["reason"].to_pylist() == ["too_short"]


def test_columns_are_mapped_not_copied(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS)
    opened = Manifest(tmp_path)
    assert not opened.num_frames.flags.owndata
    cached = list((tmp_path / ".cache").iterdir())
    assert len(cached) == 1
    before = cached[0].stat().st_mtime_ns
    Manifest(tmp_path)
    assert cached[0].stat().st_mtime_ns == before
    cached[0].unlink()  # it is made again
    code = "import pickle, sys, pipeline.workers.sidecar; sent = pickle.load(sys.stdin.buffer)\n"
    code += "print(sent.clip(3), sent.stride, sent.sources, sent.split, {'pyarrow', 'fsspec', 'torch'} & sys.modules.keys())"
    command = [sys.executable, "-c", f"import sys; sys.path = {sys.path!r}; {code}"]
    done = subprocess.run(command, input=pickle.dumps(opened), capture_output=True)
    assert done.stdout.decode() == f"{opened.clip(3)} [0 4 0 4 0] ['made-up'] [0 0 0 0 0] set()\n", done.stderr


def test_clips_without_a_split(tmp_path: Path) -> None:
    splits = [None, "val", "train", None, "val", None, "train", "test", "val", None]
    write_rows(tmp_path, [row(i, split=split) for i, split in enumerate(splits)])
    opened = Manifest(tmp_path)
    assert [opened.splits[code] if code >= 0 else None for code in opened.split] == splits
    assert opened.column("split").to_pylist() == splits
    write_rows(tmp_path, [row(i, split=split) for i, split in enumerate([*splits, *[None] * 5])])
    assert Manifest(tmp_path, 1).split.tolist() == opened.split.tolist()
    assert Manifest(tmp_path).split.tolist() == [*opened.split.tolist(), *[-1] * 5]
    (tmp_path / "bare").mkdir()
    write_rows(tmp_path / "bare", [row(i, split=None) for i in range(3)])
    assert (Manifest(tmp_path / "bare").split.tolist(), Manifest(tmp_path / "bare").splits) == ([-1] * 3, [])


def test_versions_append(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS[:3])
    first = Manifest(tmp_path)
    write_rows(tmp_path, ROWS[:3])
    assert len(Manifest(tmp_path).versions) == 1
    write_rows(tmp_path, ROWS)
    latest, old = Manifest(tmp_path), Manifest(tmp_path, version=1)
    assert (latest.version, len(latest), len(old)) == (2, 5, 3)
    assert old.fingerprint == first.fingerprint != latest.fingerprint
    assert np.array_equal(old.num_frames, first.num_frames)
    with pytest.raises(ValueError, match="versions 1 to 2"):
        Manifest(tmp_path, version=3)
    with pytest.raises(ValueError, match="does not begin with the rows of version 1"):
        write_rows(tmp_path, [row(7), *ROWS])


@pytest.mark.parametrize("column", ["content_hash", "num_frames", "fps", "width", "sampling", "rotation", "key"])
def test_fingerprint_covers_what_a_batch_depends_on(tmp_path: Path, column: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    write_rows(tmp_path / "a", ROWS)
    changed = {
        "content_hash": "00" * 16,
        "num_frames": 99,
        "fps": 25.0,
        "width": 16,
        "sampling": "stride:2",
        "rotation": 90,
        "key": "k",
    }
    write_rows(tmp_path / "b", [row(0, **{column: changed[column]}), *ROWS[1:]])
    assert Manifest(tmp_path / "a").fingerprint != Manifest(tmp_path / "b").fingerprint


def test_read_only_datasets_are_cached_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    write_rows(data, ROWS)
    (data / ".cache").write_text("a file where the folder should be, which even root cannot write into")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert len(Manifest(data)) == 5
    assert len(list((tmp_path / "home" / "tubecell").iterdir())) == 1


def test_a_cache_is_whole_when_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another rank may read it at that moment."""
    write_rows(tmp_path, ROWS)
    replace, seen = os.replace, []

    def look(source: str, target: Path) -> None:
        seen.append(len(pa.ipc.open_file(pa.memory_map(source)).read_all()))
        replace(source, target)

    monkeypatch.setattr("pipeline.storage.manifest_cache.os.replace", look)
    assert len(Manifest(tmp_path)) == 5 and seen == [5]


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="build one with `tubecell build-unlabeled-hybrid`"):
        Manifest(tmp_path)
    (tmp_path / "shards").mkdir()
    with pytest.raises(ValueError, match="interrupted; run the build command again"):
        Manifest(tmp_path)
    with pytest.raises(ValueError, match="'clip-1'"):
        write_rows(tmp_path, [ROWS[1], ROWS[1]])
    with pytest.raises(ValueError, match="holds a dot"):
        write_rows(tmp_path, [row(0, key="a.b")])
    table = pq.read_table(_written(tmp_path)).replace_schema_metadata({b"tubecell": json.dumps({"format": 99})})
    pq.write_table(table, tmp_path / "manifest.parquet")
    with pytest.raises(ValueError, match="format 99"):
        Manifest(tmp_path)


def _written(folder: Path) -> Path:
    write_rows(folder, ROWS)
    assert sorted(os.listdir(folder)) == ["manifest.parquet", "rejects.parquet", "shards"]  # no temporary file stays
    return folder / "manifest.parquet"


def test_sampling_texts() -> None:
    assert parse_sampling("stride:2") == (2, 0.0)
    assert parse_sampling("seconds:0.133333") == (0, 0.133333)
    for wrong in ("stride:0", "stride:1.5", "seconds:0", "seconds:-1", "every:2", "4", "seconds:nan"):
        with pytest.raises(ValueError, match="allowed are"):
            parse_sampling(wrong)


def test_two_keys_with_one_number_are_two_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Duplicates are looked for by hashes, and found by the keys themselves."""
    monkeypatch.setattr("pipeline.storage.manifest_writer.xxhash.xxh3_64_intdigest", len)
    write_rows(tmp_path, ROWS)
    assert len(Manifest(tmp_path)) == 5
    with pytest.raises(ValueError, match="two clips have the key 'clip-3'"):
        write_rows(tmp_path, [*ROWS, ROWS[3]])
