import json
import shutil
import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_dataset import KEYS, finish, made_row, make_dataset, make_videos, tar_bytes

from dataset_builders.checking.recheck import main, recheck, repair
from dataset_builders.checking.shard_checker import Checker, ClipTask, Fault, Finding, ShardTask
from dataset_builders.tars.headers import read_members
from pipeline.keyed import sample_rows
from pipeline.storage.columns import read_rows
from pipeline.storage.manifest import read_versions
from pipeline.storage.manifest_writer import SCHEMA

SHARD = "shards/v-000000.tar"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return make_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, videos: list[bytes]) -> Path:
    dataset = tmp_path_factory.mktemp("pristine") / "dataset"
    make_dataset(dataset, videos)
    return dataset


@pytest.fixture
def dataset(tmp_path: Path, pristine: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "dataset")


def rows_of(dataset: Path) -> list[dict]:
    return read_rows(dataset / "manifest.parquet").to_pylist()


def check(dataset: Path, decode: bool = True) -> list[Finding]:
    """Shards and clips, in this process."""
    checker, rows = Checker(str(dataset), decode), rows_of(dataset)
    findings = []
    for shard in dict.fromkeys(row["shard"] for row in rows):
        findings += checker(ShardTask(shard, sum(row["shard"] == shard for row in rows)))
    for row in rows:
        findings += checker(ClipTask(row))
    return findings


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 0x10
    file.write_bytes(data)


def test_a_good_dataset_has_no_findings(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dataset)]) == 0
    assert "nothing is wrong (all clips; decoded whole)" in capsys.readouterr().out
    assert check(dataset) == []


def test_one_flipped_byte_is_found_and_the_clip_named(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = rows_of(dataset)[4]
    flip(dataset / victim["shard"], victim["offset"] + victim["size"] // 2)
    assert main([str(dataset), "--workers", "2"]) == 1
    printed = capsys.readouterr().out
    assert f"{victim['shard']} {victim['key']}: content: expected content hash {victim['content_hash']}, found" in printed
    assert f"1 finding in {victim['shard']}" in printed
    files = [dataset / "shards/v-000001.tar", dataset / "shards/v-000001.idx", dataset / ".build/done/v-000001.json"]
    assert f"rm -f {' '.join(map(str, files))}; then run the command that built the dataset again" in printed


def test_no_byte_of_a_shard_can_change_unseen(dataset: Path) -> None:
    """Names, sizes, JSON, clips, padding: every 97th byte up to the end mark, and the clip it belongs to is named."""
    shard = dataset / SHARD
    members, _ = read_members(shard)
    end = -(-(members[-1].offset + members[-1].size) // 512) * 512
    whole = shard.read_bytes()
    for place in range(0, end, 97):
        within = place % 512
        begins = max(m.offset for m in members if m.offset - 512 <= place)
        if place < begins and 154 <= within < 156:
            continue  # what ends a header's checksum is no part of it
        flip(shard, place)
        findings = check(dataset, decode=False)
        assert findings, place
        member = next(m for m in members if place < -(-(m.offset + m.size) // 512) * 512)
        assert member.name.split(".")[0] in {finding.key for finding in findings}, (place, findings)
        shard.write_bytes(whole)


def test_a_truncated_shard(dataset: Path) -> None:
    rows = rows_of(dataset)
    shard = dataset / SHARD
    shard.write_bytes(shard.read_bytes()[: rows[1]["offset"] + 100])
    findings = check(dataset)
    assert [(f.what, f.key) for f in findings if f.what is Fault.RANGE] == [(Fault.RANGE, KEYS[1]), (Fault.RANGE, KEYS[2])]
    assert Fault.TAR in {finding.what for finding in findings}
    assert KEYS[0] not in {finding.key for finding in findings}
    assert {finding.shard for finding in findings} == {SHARD}


def test_a_missing_shard_is_one_finding(dataset: Path) -> None:
    (dataset / SHARD).unlink()
    findings = list(recheck(dataset, workers=1))
    assert findings == [Finding(Fault.SHARD, SHARD, "", "a tar with 3 clips", "no such file")]
    assert "rm -f" in repair(dataset, findings[0])


def test_swapped_shards(dataset: Path) -> None:
    first, second = dataset / SHARD, dataset / "shards/v-000001.tar"
    first.rename(dataset / "third")
    second.rename(first)
    (dataset / "third").rename(second)
    findings = check(dataset)
    assert {f.key for f in findings if f.what in (Fault.MEMBER, Fault.RANGE)} == set(KEYS)
    assert [f.shard for f in findings if f.what is Fault.INDEX] == [SHARD, "shards/v-000001.tar"]
    member = next(f for f in findings if f.what is Fault.MEMBER)
    assert member.key == KEYS[0]
    assert "clip-0.*" in member.expected


def test_swapped_clips_within_a_shard(dataset: Path, videos: list[bytes]) -> None:
    """Two rows of the manifest with each other's places: bytes are whole, but not those of the key."""
    rows = rows_of(dataset)
    for name in ("offset", "size"):
        rows[0][name], rows[1][name] = rows[1][name], rows[0][name]
    for file in ("manifest.parquet", "rejects.parquet", "dataset.json"):
        (dataset / file).unlink()
    finish(dataset, rows)
    wrong = {(f.what, f.key) for f in check(dataset)}
    assert {(Fault.MEMBER, KEYS[0]), (Fault.MEMBER, KEYS[1]), (Fault.CONTENT, KEYS[0])} <= wrong
    assert not {key for _, key in wrong} & set(KEYS[2:])


def test_index_files(dataset: Path) -> None:
    index = dataset / "shards/v-000000.idx"
    text = index.read_text()
    index.write_text(text.replace("mp4 ", "mp4 1", 1))
    [finding] = check(dataset)
    assert (finding.what, finding.key) == (Fault.INDEX, KEYS[0])
    assert finding.expected.startswith("line 2: ")
    index.write_text("".join(text.splitlines(keepends=True)[:-1]))
    [finding] = check(dataset)
    assert (finding.what, finding.expected, finding.found) == (Fault.INDEX, "4 lines", "3")
    index.unlink()
    [finding] = check(dataset)
    assert (finding.what, finding.found) == (Fault.INDEX, "none")


def test_columns_that_are_not_what_decodes(tmp_path: Path, videos: list[bytes]) -> None:
    for column, value in {"num_frames": 99, "keyframes": [0, 3], "pts_step": 7, "fps": 29.0, "height": 50}.items():
        dataset = tmp_path / column
        make_dataset(dataset, videos[:1], **{column: value})
        [finding] = check(dataset)
        assert (finding.what, finding.key) == (Fault.COLUMNS, KEYS[0])
        assert finding.expected == f"{column} {value!r}"
        assert check(dataset, decode=False) == []
        assert "the decoder has changed since" in repair(dataset, finding)


def test_a_clip_that_does_not_decode(tmp_path: Path, videos: list[bytes]) -> None:
    """Its bytes are those of the manifest: only decoding tells."""
    damaged = bytearray(videos[0])
    start = damaged.index(b"mdat") + 200
    damaged[start : start + 1000] = bytes(1000)
    dataset = tmp_path / "dataset"
    row = made_row("clip-0", videos[0])
    (dataset / "shards").mkdir(parents=True)
    from dataset_builders.media.clip import EncodedClip
    from dataset_builders.tars.writer import ShardWriter
    from pipeline.storage.manifest import content_hash

    writer = ShardWriter(dataset, "v-000000")
    writer.add(EncodedClip(bytes(damaged), "mp4", {**row, "content_hash": content_hash(bytes(damaged))}))
    finish(dataset, writer.finish())
    [finding] = check(dataset)
    assert (finding.what, finding.key) == (Fault.DECODING, "clip-0")
    assert finding.found.startswith("damaged: ")


def test_manifest_and_description(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = json.loads((dataset / "dataset.json").read_text())
    described["versions"][0]["rows"] = 5
    described["sources"]["v"]["taken"] = 7
    (dataset / "dataset.json").write_text(json.dumps(described))
    findings = list(recheck(dataset, workers=1, decode=False))
    assert [finding.what for finding in findings] == [Fault.DATASET] * 2
    assert "7" in findings[1].found
    assert "finished.json" in repair(dataset, findings[0])
    (dataset / "dataset.json").write_text("{")
    assert main([str(dataset), "--no-decode", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [finding["what"] for finding in printed["findings"]] == ["dataset"]


def test_fingerprints_of_all_versions(dataset: Path, videos: list[bytes]) -> None:
    rows = rows_of(dataset)
    finish(dataset, [*rows, {**rows[0], "key": "another"}])
    assert [entry["rows"] for entry in read_versions(dataset / "manifest.parquet")] == [6, 7]
    table = pq.read_table(dataset / "manifest.parquet")
    metadata = pq.read_metadata(dataset / "manifest.parquet").metadata
    assert not [f for f in recheck(dataset, workers=1, decode=False) if f.what is Fault.FINGERPRINT]
    keys = pa.array([*KEYS[:-1], "changed", "another"])
    changed = table.set_column(SCHEMA.get_field_index("key"), "key", keys)
    pq.write_table(changed.replace_schema_metadata(metadata), dataset / "manifest.parquet")
    findings = [f for f in recheck(dataset, workers=1, decode=False) if f.what is Fault.FINGERPRINT]
    assert [f.expected[:9] for f in findings] == ["version 1", "version 2"]
    pq.write_table(table.slice(0, 4).replace_schema_metadata(metadata), dataset / "manifest.parquet")
    findings = list(recheck(dataset, workers=1, decode=False))
    assert (Fault.DATASET, "4") in {(finding.what, finding.found) for finding in findings}


def test_a_damaged_manifest_is_a_finding(dataset: Path) -> None:
    data = bytearray((dataset / "manifest.parquet").read_bytes())
    data[4:600] = bytes(596)
    (dataset / "manifest.parquet").write_bytes(data)
    findings = list(recheck(dataset, workers=1))
    assert findings[-1].what is Fault.DATASET
    assert findings[-1].expected == "a manifest.parquet that can be read"


def test_samples_are_always_the_same() -> None:
    rows = sample_rows(1000, 50, "0123456789abcdef0123456789abcdef")
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert len(rows) == 50
    assert rows[0] >= 0
    assert rows[-1] < 1000
    assert rows.tolist() == sample_rows(1000, 50, "0123456789abcdef0123456789abcdef").tolist()
    assert rows.tolist() != sample_rows(1000, 50, "1123456789abcdef0123456789abcdef").tolist()
    assert sample_rows(3, 50, "0123456789abcdef").tolist() == [0, 1, 2]
    assert sample_rows(0, 50, "0123456789abcdef").tolist() == []


def test_a_sample_looks_at_as_many(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row in rows_of(dataset):
        flip(dataset / row["shard"], row["offset"] + 50)
    findings = [f for f in recheck(dataset, sample=2, workers=1, decode=False) if f.what is Fault.CONTENT]
    chosen = sample_rows(6, 2, read_versions(dataset / "manifest.parquet")[0]["fingerprint"])
    assert [f.key for f in findings] == [KEYS[row] for row in chosen]


def test_failures_of_a_training_run(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(dataset)
    for row in rows[:3]:
        flip(dataset / row["shard"], row["offset"] + 50)
    log = tmp_path / "failures.jsonl"
    failed = [{"epoch": 0, "row": 1, "key": KEYS[1], "reason": "damaged"}, {"key": "elsewhere"}, {"key": KEYS[5]}]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in failed))
    assert main([str(dataset), "--failures", str(log), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [(f["what"], f["key"]) for f in findings] == [("content", KEYS[1]), ("unknown_key", "elsewhere")]
    log.write_text('{"position": 3}\n')
    assert main([str(dataset), "--failures", str(log)]) == 2
    assert "line 1 has no key" in capsys.readouterr().err


def test_indexed_tars_are_rechecked_where_they_lie(tmp_path: Path, videos: list[bytes]) -> None:
    tar = tmp_path / "elsewhere.tar"
    names = ["a.mp4", "long/" * 30 + "b.mp4"]
    tar.write_bytes(tar_bytes(dict(zip(names, videos, strict=False))))
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    members, _ = read_members(tar)
    rows = []
    for key, video, member in zip(KEYS, videos, members, strict=False):
        place = {"shard": str(tar), "offset": member.offset, "size": member.size}
        rows.append(made_row(key, video, path=b"elsewhere.tar/" + member.name.encode(), **place))
    finish(dataset, rows)
    assert list(recheck(dataset, workers=1)) == []
    flip(tar, members[1].offset + 9)
    [finding] = recheck(dataset, workers=1)
    assert (finding.what, finding.key) == (Fault.CONTENT, KEYS[1])
    assert "restore" in repair(dataset, finding)
    flip(tar, members[1].offset + 9)
    shifted = tar_bytes({"new.mp4": videos[2]})
    tar.write_bytes(shifted[: -(-len(videos[2]) // 512) * 512 + 512] + tar.read_bytes())
    assert {finding.key for finding in recheck(dataset, workers=1)} == set(KEYS[:2])


def test_errors_say_what_to_do(tmp_path: Path, pristine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "has no manifest.parquet" in capsys.readouterr().err
    assert main([]) == 2
    assert main([str(pristine), "--sample", "0"]) == 2
    assert "--sample 0: allowed are 1 to" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(pristine), "--sample", "1", "--failures", "x"])


def test_repair_commands_survive_a_shell(tmp_path: Path, pristine: Path) -> None:
    dataset = shutil.copytree(pristine, tmp_path / "a folder; with 'odd' $(names)")
    (dataset / "shards/v-000001.idx").unlink()
    [finding] = recheck(dataset, workers=1, decode=False)
    command = repair(dataset, finding).split("; then run")[0]
    subprocess.run(command, shell=True, check=True)
    assert sorted(file.name for file in (dataset / "shards").iterdir()) == ["v-000000.idx", "v-000000.tar"]
    assert sorted(file.name for file in (dataset / ".build/done").iterdir()) == ["v-000000.json"]
