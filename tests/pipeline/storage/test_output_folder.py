"""Where commands may write."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.output_folder import is_dataset, is_run, lies_in, refuse_dataset, refuse_for_run, refuse_sources


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A finished dataset, one that was begun, a run, and a run in a dataset, as commands of old could make it."""
    (tmp_path / "dataset" / "shards").mkdir(parents=True)
    (tmp_path / "dataset" / "manifest.parquet").touch()
    (tmp_path / "begun" / "shards").mkdir(parents=True)
    (tmp_path / "begun" / ".build").mkdir()
    (tmp_path / "begun" / ".build" / "lock").touch()
    for run in (tmp_path / "run", tmp_path / "dataset" / "runs" / "old"):
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.json").touch()
    (tmp_path / "link").symlink_to(tmp_path / "dataset")
    return tmp_path


def test_what_lies_there(made: Path) -> None:
    assert is_dataset(made / "dataset") and is_dataset(made / "begun") and is_dataset(made / "link")
    assert is_run(made / "run") and not is_dataset(made / "run") and not is_run(made / "dataset")
    (made / "manifest.parquet").touch()  # of something else
    assert not is_dataset(made) and not is_dataset(made / "nowhere") and not is_run(made / "nowhere")


@pytest.mark.parametrize(
    "path",
    ["dataset", "begun", "link", "dataset/new/run", "link/new", "run/../dataset/x", "dataset/runs/new", "begun/page.html"],
)
def test_a_dataset_is_not_written_into(made: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    for spelled in (path, str(made / path), f"file://{made / path}"):
        with pytest.raises(ValueError, match=r"^--out .*a dataset, which holds .*give a folder outside of it$"):
            refuse_dataset("--out", spelled)


@pytest.mark.parametrize(
    "path", ["", "new", "run", "run/x", "dataset-2", "dataset/runs/old", "dataset/runs/old/more", "s3://b/x"]
)
def test_other_places_are_fine(made: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    refuse_dataset("--out", path)


def test_a_folder_and_its_links(made: Path) -> None:
    (made / "up").symlink_to(made)
    assert lies_in(made / "up" / "run" / "new" / "deep", made / "run") and lies_in(made / "run", made / "up")
    assert not lies_in(made / "run-2", made / "run") and not lies_in(made, made / "run") and not lies_in(made, made / "nowhere")
    with pytest.raises(ValueError, match=r"--out .*/up/run/x: lies in .*/run, which is the folder of source 'own'"):
        refuse_sources("--out", made / "up" / "run" / "x", {"own": bytes(made / "run")})


def test_a_run_lies_beside_its_dataset_and_its_sources(tmp_path: Path) -> None:
    """Its sources as dataset.json has them, if they are the same here."""
    dataset, videos = tmp_path / "dataset", tmp_path / "videos"
    (videos / "a").mkdir(parents=True)
    (videos / "a" / "1.mp4").touch()
    dataset.mkdir()
    pq.write_table(pa.table({"root": ["own", "own"], "path": [b"a/1.mp4", b"a/2.mp4"]}), dataset / "manifest.parquet")
    lists = {"kind": "lists", "folders": {"l": "/", "l:list": str(tmp_path)}}  # nothing is looked through for these
    tars = {"kind": "index", "folders": {"t": str(tmp_path)}}

    def describe(folder: Path) -> None:
        sources = {"own": {"kind": "folder", "folders": {"own": str(folder)}}, "l": lists, "t": tars}
        (dataset / "dataset.json").write_text(json.dumps({"sources": sources}))

    describe(videos)
    refuse_for_run(tmp_path, dataset, None)  # as the quickstart's, which holds both
    refuse_for_run(tmp_path / "run", dataset, "s3://bucket/run")
    for out in (videos, videos / "runs" / "1"):
        with pytest.raises(ValueError, match=r"--out .*/videos.* the folder of source 'own'"):
            refuse_for_run(out, dataset, None)
    with pytest.raises(ValueError, match=r"--mirror file://.*: lies in .*, which is a dataset"):
        refuse_for_run(tmp_path / "run", dataset, f"file://{dataset}/mirror")
    with pytest.raises(
        ValueError, match=r"--mirror s3://bucket/dataset/run: lies in s3://bucket/dataset, which is the dataset"
    ):
        refuse_for_run(tmp_path / "run", "s3://bucket/dataset", "s3://bucket/dataset/run")
    (tmp_path / "elsewhere").mkdir()
    describe(tmp_path / "elsewhere")  # that of another machine: it has none of the files
    refuse_for_run(tmp_path / "elsewhere" / "run", dataset, None)
