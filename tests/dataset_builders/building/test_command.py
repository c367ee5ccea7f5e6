"""Flags, TOML, plans, and the ways to run a build: in shares and on Ray."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_videos import make_video, tree

from dataset_builders import build_dataset, build_labeled_hybrid, build_unlabeled_hybrid, generate_clips
from dataset_builders.building.command import arguments as arguments_of
from dataset_builders.building.command import make_build
from dataset_builders.plan import clip_keys
from dataset_builders.sources.kinds import KINDS, Source
from pipeline.storage.columns import read_rows
from pipeline.storage.manifest import Manifest

SCRIPT = Path(build_unlabeled_hybrid.__file__)
IDS = [f"-id{number:08d}" for number in range(6)]


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k400 and k700 with lists; ids 0 to 3 have files, 4 has none, 5 is in a validation list, too."""
    home = tmp_path_factory.mktemp("kinetics")
    for version, ids in (("k400", IDS[:3]), ("k700", IDS[2:4])):
        (home / version / "train" / "air drumming").mkdir(parents=True)
        for number, youtube_id in enumerate(ids):
            name = f"{youtube_id}_000010_000020.mp4"
            make_video(home / version / "train" / "air drumming" / name, frames=20 + number)
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    rows = [f"air drumming,{youtube_id},10,20,train,0\n" for youtube_id in IDS]
    (home / "k400_train.csv").write_text(header + "".join(rows[:3]) + rows[5])
    (home / "k700_train.csv").write_text(header + "".join(rows[2:5]))
    (home / "k700_val.csv").write_text(header + f"air drumming,{IDS[5]},10,20,validate,0\n")
    return home


def toml(home: Path, out: Path, more: str = "") -> Path:
    file = home / f"{out.name}.toml"
    file.write_text(
        f"""
        out = "{out}"
        short_side = 128
        clips_per_shard = 2
        {more}
        [sources.k710]
        kind = "kinetics"
        400 = {{folder = "k400", lists = "k400_train.csv"}}
        700 = {{folder = "k700", lists = ["k700_train.csv", "k700_val.csv"]}}
        """
    )
    return file


def test_a_plan_touches_nothing(kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--k400", str(kinetics / "k400"), str(kinetics / "k400_train.csv")]
    arguments += ["--folder", f"own={kinetics}", "--out", str(tmp_path / "dataset"), "--plan"]
    assert build_unlabeled_hybrid.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "not asked for: no_file" in printed
    assert "658,340" in printed and "1,348,403" in printed  # the paper's
    assert "would write about 2 shards of up to 500" in printed
    assert not (tmp_path / "dataset").exists()


def test_kinetics_from_a_file(kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = tmp_path / "dataset"
    assert build_labeled_hybrid.main(["--config", str(toml(kinetics, dataset))]) == 0
    rows = read_rows(dataset / "manifest.parquet").to_pylist()
    assert [(row["source_id"], row["label"], row["split"]) for row in rows] == [
        (youtube_id, "air drumming", "train") for youtube_id in IDS[:4]
    ]
    assert {row["root"] for row in rows} == {"k400", "k700"}
    dropped = {(row["source_id"], row["reason"]) for row in read_rows(dataset / "dropped.parquet").to_pylist()}
    assert {(IDS[4], "no_file"), (IDS[5], "leak"), (IDS[2], "duplicate")} <= dropped
    assert json.loads((dataset / "label_map_k710.json").read_bytes()) == ["air drumming"]
    described = json.loads((dataset / "dataset.json").read_bytes())["sources"]["k710"]
    assert described["leaks"] == "from-train" if "leaks" in described else described["kind"] == "kinetics"
    assert described["folders"] == {"k400": str(kinetics / "k400"), "k700": str(kinetics / "k700")}
    assert len(list((dataset / "shards").glob("*.tar"))) == 2
    capsys.readouterr()
    changed = toml(kinetics, dataset)
    changed.write_text(changed.read_text().replace('kind = "kinetics"', 'kind = "kinetics"\nleaks = "from-val"'))
    assert build_labeled_hybrid.main(["--config", str(changed)]) == 2
    assert "leaks of source k710 was None and is now from-val" in capsys.readouterr().err


def test_errors_name_what_is_wrong(kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dataset"

    def error_of(entry: object, *arguments: str) -> str:
        assert entry.main(list(arguments)) == 2  # type: ignore[attr-defined]
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    config = toml(kinetics, out, "shortside = 3")
    assert "shortside is not known; allowed are out, work, preset" in error_of(build_unlabeled_hybrid, "--config", str(config))
    config.write_text("[sources.x]\nkind = 'flickr'\n")
    assert "kind 'flickr' is not known; allowed are ava, folder" in error_of(build_unlabeled_hybrid, "--config", str(config))
    config.write_text("[sources.x]\nkind = 'folder'\nfolders = 'a'\n")
    assert "folders is not known to kind 'folder'; allowed are folder" in error_of(
        build_unlabeled_hybrid, "--config", str(config)
    )
    config.write_text("[sources.x]\nkind = 'folder'\n")
    assert "kind 'folder' needs folder" in error_of(build_unlabeled_hybrid, "--config", str(config))
    config.write_text("sources = 3")
    assert "sources must be tables" in error_of(build_unlabeled_hybrid, "--config", str(config))
    config.write_text("[sources")
    assert "is no TOML" in error_of(build_unlabeled_hybrid, "--config", str(config))
    folder = ["--folder", f"own={kinetics}"]
    assert "--out DATASET is missing" in error_of(build_unlabeled_hybrid, *folder)
    assert "there is no source" in error_of(build_unlabeled_hybrid, "--out", str(out))
    both = [*folder, "--instagram", f"i={kinetics}", "--out", str(out)]
    assert "one source is wanted, 2 were given" in error_of(build_dataset, *both)
    for share in ("0/3", "4/3", "2", "a/b"):
        assert f"--job {share!r}" in error_of(build_unlabeled_hybrid, *folder, "--out", str(out), "--job", share)
    assert "no dataset that was begun" in error_of(build_unlabeled_hybrid, *folder, "--out", str(out), "--finish")
    train, val = f"own={kinetics / 'k400'}", f"own:val={kinetics / 'k700'}"
    for wrong, told in (
        ([train, train], "'own' is given twice; a folder for another split is own:val=PATH"),
        ([val, val], "'own' is given twice"),
        ([train, f"own:val={kinetics}"], f"{kinetics / 'k400'} lies in {kinetics}, and its files would be asked for twice"),
        ([f"own:dev={kinetics}"], "there is no split 'dev'; allowed are train, val, test"),
    ):
        assert told in error_of(build_dataset, *(part for text in wrong for part in ("--folder", text)), "--out", str(out))
    assert "are all for training" in error_of(build_dataset, "--instagram", val, "--out", str(out))
    assert "--labels-from-folder: is for --folder" in error_of(build_dataset, "--index", "a=b", "--labels-from-folder")
    assert "--list-root /x: is for --list" in error_of(build_dataset, *folder, "--list-root", "/x", "--out", str(out))
    twice = ["--ssv2", str(kinetics), str(kinetics)] * 2
    assert "--ssv2 is given 2 times" in error_of(build_dataset, *twice, "--out", str(out))
    missing = ["--ssv2", str(kinetics), str(kinetics / "k400"), "--out", str(out)]
    assert "holds none of the lists of something" in error_of(build_dataset, *missing)
    assert not out.exists()


def planned(entry: object, *arguments: str) -> Source:
    """The one source of a command line."""
    splits = {build_dataset: ("train", "val", "test"), build_labeled_hybrid: ("train", "val")}.get(entry, ("train",))
    args = arguments_of("", KINDS).parse_args([*arguments, *([] if "--config" in arguments else ["--out", "dataset"])])
    (source,) = make_build(args, splits, KINDS).sources
    return source


def rows_of(source: Source) -> list[tuple[str, bytes, str, str | None]]:
    return [(row["root"], row["path"], row["split"], row["label"]) for row in source.plan().requests.to_pylist()]


def touch(home: Path, *names: str) -> None:
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()


def test_kinetics_of_one_version_with_all_its_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 33a; and train and val in folders of their own, with a list each."""
    monkeypatch.chdir(tmp_path)
    names = {split: f"k/{split}/yoga/{IDS[place]}_000010_000020.mp4" for place, split in enumerate(("train", "val", "test"))}
    touch(tmp_path, *names.values())
    for place, split in enumerate(names):
        (tmp_path / f"{split}.csv").write_text(f"label,youtube_id,time_start,time_end,split\nyoga,{IDS[place]},10,20,{split}\n")
    (tmp_path / "lists").mkdir()
    for split in names:
        shutil.copy(f"{split}.csv", "lists")
    together = planned(build_dataset, "--k400", "k", "lists")
    assert rows_of(together) == [("k400", names[split][2:].encode(), split, "yoga") for split in names]
    assert [row[2] for row in rows_of(planned(build_labeled_hybrid, "--k400", "k", "lists"))] == ["train", "val"]
    apart = planned(build_dataset, *("--k400", "k/train", "train.csv", "--k400", "k/val", "val.csv"))
    inside = [names[split].split("/", 2)[2].encode() for split in names]
    assert rows_of(apart) == [("k400", inside[0], "train", "yoga"), ("k400:2", inside[1], "val", "yoga")]
    assert apart.roots() == {"k400": bytes(tmp_path / "k" / "train"), "k400:2": bytes(tmp_path / "k" / "val")}
    version = 'folder = ["k/train", "k/val"], lists = ["train.csv", "val.csv"]'
    (tmp_path / "build.toml").write_text(f'out = "d"\n[sources.kinetics]\nkind = "kinetics"\n400 = {{{version}}}')
    assert rows_of(planned(build_dataset, "--config", "build.toml")) == rows_of(apart)
    alone = planned(build_dataset, "--k400", "k/train", "train.csv")
    assert rows_of(alone) == rows_of(apart)[:1]  # a dataset that began with one folder can take another


@pytest.mark.parametrize(("flag", "kind"), [("folder", "folder"), ("frames", "frames")])
def test_a_folder_for_each_split(flag: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = "x.mp4" if kind == "folder" else "x/1.jpg"
    touch(tmp_path, *(f"{split}/{label}/{file}" for split in ("train", "val") for label in ("run", "walk")))
    flags = [f"--{flag}", "own=train", f"--{flag}", "own:val=val", "--labels-from-folder"]
    source = planned(build_dataset, *flags)
    end = "/x.mp4" if kind == "folder" else "/x"
    wanted = [(root, f"{label}{end}".encode(), split, label) for root, split in (("own", "train"), ("own:val", "val"))
              for label in ("run", "walk")]  # fmt: skip
    assert rows_of(source) == wanted
    rate = "rate = 30" if kind == "frames" else ""
    for first in ("folder", "train"):
        table = f'kind = "{kind}"\n{first} = "train"\nval = "val"\nlabel_from_folder = true\n{rate}\n'
        (tmp_path / "build.toml").write_text(f'out = "dataset"\n[sources.own]\n{table}')
        same = planned(build_dataset, "--config", "build.toml")
        assert (rows_of(same), same.agreed(), same.roots()) == (rows_of(source), source.agreed(), source.roots())
    assert rows_of(planned(build_dataset, f"--{flag}", "own:val=val", "--labels-from-folder")) == wanted[2:]
    assert len(set(clip_keys(source.plan().requests))) == 4


def test_sampling_for_all_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At the top of a file it is every source's that has none; a flag wins over both."""
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "own/a.mp4")
    file = tmp_path / "build.toml"
    for top, own, flag, wanted in (
        ("stride:2", "", (), "stride:2"),
        ("stride:2", 'sampling = "seconds:0.2"', (), "seconds:0.2"),
        ("stride:2", 'sampling = "seconds:0.2"', ("--sampling", "stride:3"), "stride:3"),
    ):
        file.write_text(f'out = "dataset"\nsampling = "{top}"\n[sources.own]\nkind = "folder"\nfolder = "own"\n{own}')
        assert planned(build_dataset, "--config", "build.toml", *flag).plan().requests["sampling"].to_pylist() == [wanted]
    file.write_text('out = "dataset"\nsampling = 4\n[sources.own]\nkind = "folder"\nfolder = "own"')
    assert build_dataset.main(["--config", "build.toml"]) == 2 and "sampling '4' is not known" in capsys.readouterr().err


def test_lists_for_each_split_beside_their_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And several for one."""
    touch(tmp_path, "own/a.mp4", "own/b.mp4", "own/c.mp4", "own/private.txt")
    for name, video in (("train.csv", "a.mp4"), ("more.csv", "b.mp4"), ("val.csv", "c.mp4")):
        (tmp_path / "own" / name).write_text(f"{video} 1\n")
    monkeypatch.chdir(tmp_path)
    source = planned(
        build_dataset, *("--list", "own=own/train.csv", "--list", "own:val=own/val.csv", "--list", "own=own/more.csv")
    )
    wanted = [("own:list", b"a.mp4", "train", "1"), ("own:list", b"b.mp4", "train", "1"), ("own:list", b"c.mp4", "val", "1")]
    assert rows_of(source) == wanted
    assert not len(source.plan().dropped)
    table = 'kind = "lists"\ntrain = ["own/train.csv", "own/more.csv"]\nval = "own/val.csv"'
    (tmp_path / "build.toml").write_text(f'out = "dataset"\n[sources.own]\n{table}')
    assert rows_of(planned(build_dataset, "--config", "build.toml")) == wanted
    rooted = planned(build_dataset, "--list", "own=own/train.csv", "--list-root", "own")
    assert rows_of(rooted) == [("own", b"a.mp4", "train", "1")]
    dropped = rooted.plan().dropped["path"].to_pylist()
    assert dropped == [b"b.mp4", b"c.mp4", b"more.csv", b"private.txt", b"train.csv", b"val.csv"]


def test_places_that_a_build_would_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    touch(tmp_path, "own/deep/a.mp4", "ds/manifest.parquet", "ds/shards/own-000000.tar", "run/config.json", "run/checkpoints/x")
    (tmp_path / "link").symlink_to("own/deep")
    monkeypatch.chdir(tmp_path)

    def refused(*arguments: str, folder: str = "own") -> str:
        before = sorted(tmp_path.rglob("*"))
        assert build_unlabeled_hybrid.main(["--folder", f"own={folder}", *arguments]) == 2
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err

    for out in ("own", "own/dataset", "link/dataset", "own/deep/../x"):
        assert re.search(r"own(:|, which) is the folder of source 'own'", refused("--out", out))
    assert "which is a dataset" in refused("--out", "ds/other")
    assert "run: is a training run" in refused("--out", "run")
    assert "own/work: lies in" in refused("--out", "s3://bucket/dataset", "--work", "own/work")
    assert "--out file://" in refused("--out", f"file://{tmp_path}/own/dataset", "--work", "work")
    assert "/ is the whole file system" in refused("--out", "dataset", folder="/")
    assert "ds/shards is where the build writes" in refused("--out", "ds", folder="ds/shards")
    for kind in ("--k400", "--ssv2", "--ava", "--webvid", "--ucf101", "--hmdb51"):
        lists = "ds" if kind in ("--k400", "--ucf101", "--hmdb51") else "run/config.json"
        assert build_unlabeled_hybrid.main([kind, "own", lists, "--out", "own/dataset"]) == 2
        assert "--out" in (said := capsys.readouterr().err) and "is the folder of source" in said
    # tars are named one by one, and so is what a list has
    (tmp_path / "train.csv").write_text("own/deep/a.mp4 1\n")
    assert not planned(build_dataset, "--list", "own=train.csv").searched()
    assert not planned(build_dataset, "--index", "own=ds/shards/own-000000.tar").searched()
    # and what older commands began goes on where it lies
    (tmp_path / "own" / "dataset" / ".build").mkdir(parents=True)
    (tmp_path / "own" / "dataset" / ".build" / "options.json").write_text('{"sources": {"own": {"kind": "folder"}}}')
    begun = ["--folder", "own=own", "--out", "own/dataset", "--plan"]
    assert build_unlabeled_hybrid.main(begun) == 0
    assert build_unlabeled_hybrid.main([*begun, "--folder", "more=own"]) == 2
    assert generate_clips.main(["--out", "ds/videos", "--clips", "1"]) == 2
    assert "ds, which is a dataset" in capsys.readouterr().err and not (tmp_path / "ds" / "videos").exists()


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_shares_make_the_same_bytes(undisturbed: Path, videos: Path, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    common = ["--folder", f"v={videos}", "--out", str(dataset), "--clips-per-shard", "4"]
    run(*common, "--job", "2/3")
    done = subprocess.run([sys.executable, str(SCRIPT), *common, "--finish"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "3 of 4 shards are not finished: v-000000, v-000002, v-000003" in done.stderr
    assert not (dataset / "manifest.parquet").exists()
    shares = [subprocess.Popen([sys.executable, str(SCRIPT), *common, "--job", f"{i}/3"]) for i in (1, 3)]
    assert [share.wait() for share in shares] == [0, 0]
    run(*common, "--finish")
    assert tree(dataset) == tree(undisturbed)


@pytest.mark.slow
def test_ray_makes_the_same_bytes(undisturbed: Path, videos: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    dataset = tmp_path / "dataset"
    run("--folder", f"v={videos}", "--out", str(dataset), "--clips-per-shard", "4", "--ray", "local")
    assert tree(dataset) == tree(undisturbed)


def test_tars_are_indexed_in_place(undisturbed: Path, tmp_path: Path) -> None:
    dataset, tars = tmp_path / "dataset", tmp_path / "tars"
    shutil.copytree(undisturbed / "shards", tars)
    pattern = os.fspath(tars / "v-{000000..000002}.tar")
    assert build_dataset.main(["--index", f"old={pattern}", "--out", str(dataset)]) == 0
    before = pq.read_table(undisturbed / "manifest.parquet")
    after = pq.read_table(dataset / "manifest.parquet")
    for column in ("content_hash", "offset", "size", "num_frames", "keyframes"):
        assert after[column].to_pylist() == before[column].to_pylist()
    assert not list((dataset / "shards").iterdir())
    assert len(Manifest(dataset)) == len(before)


def test_a_video_is_cut_into_equal_clips(tmp_path: Path) -> None:
    folder, dataset = tmp_path / "folder", tmp_path / "dataset"
    folder.mkdir()
    make_video(folder / "long.mp4", frames=200)  # 6.7 s
    make_video(folder / "short.mp4", frames=60)
    assert build_unlabeled_hybrid.main(["--folder", f"v={folder}", "--out", str(dataset), "--max-seconds", "2"]) == 0
    rows = read_rows(dataset / "manifest.parquet").to_pylist()
    assert [row["num_frames"] for row in rows] == [50, 50, 50, 50, 60]
    assert [row["key"].split("-")[0] for row in rows] == ["long"] * 4 + ["short"]
    assert [row["start"] for row in rows] == [pytest.approx(i * 50 / 30, abs=0.02) for i in range(4)] + [None]
    assert len({row["key"] for row in rows}) == 5


def test_when_nothing_is_found_the_error_says_what_was_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a TOML file may begin with a byte order mark."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "other.mp4").touch()
    (tmp_path / "train.csv").write_text("a.mp4 1\n")
    config = '\ufeffout = "out"\n[sources.own]\nkind = "lists"\nfolder = "videos"\ntrain = "train.csv"\n'
    (tmp_path / "build.toml").write_text(config)
    assert build_dataset.main(["--config", str(tmp_path / "build.toml")]) == 2
    told = capsys.readouterr().err
    assert "there is no file to take" in told and "begins with 'a.mp4 1'" in told and "own: 1 no_file" in told
    assert not (tmp_path / "out").exists()
