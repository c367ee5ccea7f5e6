"""dropped.parquet of a finished dataset tells of what is dropped now, and nothing else of the dataset moves."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_videos import tree
from some_unreadable import NAMES

from dataset_builders import build_unlabeled_hybrid
from dataset_builders.plan import dropped_table
from pipeline.storage import files
from pipeline.storage.columns import read_rows
from tests.pipeline.s3_server import BUCKET, S3Server

pytestmark = pytest.mark.usefixtures("halfway")


def build(tmp_path: Path, out: object, *more: object, lists: tuple[str, ...] = ("own", "more")) -> int:
    arguments = [argument for name in lists for argument in ("--list", f"{name}={tmp_path / name}.csv")]
    return build_unlabeled_hybrid.main([*arguments, "--out", str(out), "--preset", "copy", *map(str, more)])


@pytest.fixture
def home(links: Path, mount, tmp_path: Path) -> Path:
    """Where two lists of absolute paths lie, whose videos are mounted; each names one that there is not."""
    mount(*NAMES)
    for name, some in (("own", NAMES[:2]), ("more", NAMES[2:4])):
        (tmp_path / f"{name}.csv").write_text("".join(f"{links / video} 0 -1\n" for video in (*some, f"{name}.mp4")))
    return tmp_path


def as_older_code(dropped: pa.Table, described: dict) -> pa.Table:
    """What it wrote of `own`: every file of the machine."""
    paths = [os.fsencode(file).lstrip(b"/") for file in sorted(Path(__file__).parent.glob("*.py"))]
    columns = {"source": "own", "root": "own", "path": paths, "reason": "not_listed", "detail": "no list has it"}
    for counts in ("counts", "dropped"):
        described["sources"]["own"][counts]["not_listed"] = len(paths)
    return pa.concat_tables([dropped, dropped_table(columns, len(paths))])


def told(number: int) -> str:
    return f"dropped.parquet told of {number} files that no list names: they are taken out\n"


def test_what_older_code_told_of_the_machine_is_taken_out(home: Path, mount, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = home / "dataset"
    assert build(home, dataset) == 0
    clean = tree(dataset)
    file, described = dataset / "dropped.parquet", json.loads(clean["dataset.json"])
    old = as_older_code(read_rows(file), described)
    number = len(old) - 2
    for more in ([], ["--finish"]):
        pq.write_table(old, file)
        (dataset / "dataset.json").write_text(json.dumps(described))
        capsys.readouterr()
        assert build(home, dataset, "--job", "1/1") == 0  # others may be at work
        assert "nothing to do" in capsys.readouterr().out and file.read_bytes() != clean["dropped.parquet"]
        assert build(home, dataset, *more) == 0
        assert capsys.readouterr().out.startswith(
            f"{told(number)}{dataset} is complete: 4 clips, 0 rejects; nothing else to do"
        )
        assert tree(dataset) == clean
    times = {path: path.stat().st_mtime_ns for path in dataset.iterdir() if path.is_file()}
    for lists in (("more", "own"), ("more",)):
        assert build(home, dataset, lists=lists) == 0
        assert "is complete: 4 clips, 0 rejects; nothing to do" in capsys.readouterr().out
    mount()  # whatever this is, it is no news of what was dropped
    assert build(home, dataset) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in times} == times

    mount(*NAMES)
    pq.write_table(old, file)
    (dataset / "dataset.json").write_text(json.dumps(described))
    assert build(home, dataset, lists=("own",)) == 0
    assert told(number) in capsys.readouterr().out
    assert {row["source"] for row in read_rows(file).to_pylist()} == {"own", "more"}
    assert json.loads((dataset / "dataset.json").read_bytes()) == json.loads(clean["dataset.json"])
    with (home / "own.csv").open("a") as listed:
        listed.write("/nowhere/x.mp4 0 -1\n")
    assert build(home, dataset) == 0
    assert "dropped.parquet is renewed\n" in capsys.readouterr().out
    assert len(pq.read_table(file)) == 3


def test_behind_a_url(home: Path, s3: S3Server, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    """From a machine that has nothing of it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "home"))
    url = f"s3://{BUCKET}/dropped/dataset"
    assert build(home, url, "--work", home / "a") == 0
    names = [name for name in files.listed(url) if name not in ("report.html", "card.md")]
    clean = {name: files.read(f"{url}/{name}") for name in names}
    described = json.loads(clean["dataset.json"])
    pq.write_table(as_older_code(read_rows(home / "a" / "dropped.parquet"), described), home / "older.parquet")
    files.upload(home / "older.parquet", f"{url}/dropped.parquet")
    files.write_durably(f"{url}/dataset.json", json.dumps(described).encode())
    s3.clear()
    assert build(home, url, "--work", home / "b") == 0
    assert "they are taken out" in capsys.readouterr().out
    assert {name: files.read(f"{url}/{name}") for name in names} == clean
    assert s3.writes == 2
    s3.clear()
    assert build(home, url, "--work", home / "c") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert s3.writes == 0
