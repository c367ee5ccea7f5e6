import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import pytest
from made_dataset import tar_bytes
from small_videos import make_video

from dataset_builders.media.clip import ClipRequest, Reject
from dataset_builders.media.rejects import Reason, RejectedError
from dataset_builders.sources.indexed_tars import find_tars, plan, root
from dataset_builders.tars.headers import read_members
from dataset_builders.tars.members import IndexedClip, MemberIndexer, list_videos
from pipeline.storage.manifest import content_hash
from pipeline.storage.manifest_writer import SCHEMA


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    made = [make_video(folder / f"{number}.mp4", frames=16 + number).read_bytes() for number in range(3)]
    return [*made, make_video(folder / "x.webm", "-c:v", "libvpx", frames=20).read_bytes()]


def index(folder: Path, *names: str, dataset: Path | None = None, source: str = "own") -> list[IndexedClip | Reject]:
    """Plan and index tars of a folder, as a build does; results in the order of the requests."""
    return [result for _, result in index_by_path(folder, *names, dataset=dataset, source=source)]


def index_by_path(
    folder: Path, *names: str, dataset: Path | None = None, source: str = "own"
) -> list[tuple[bytes, IndexedClip | Reject]]:
    requests = [request for name in names for request in plan(source, pattern=folder / name).requests.to_pylist()]
    indexer = pickle.loads(pickle.dumps(MemberIndexer(str(dataset or folder / "dataset"))))
    results = []
    for number, request in enumerate(requests):
        assert (request["kind"], request["source"]) == ("member", source)
        made = list(indexer(ClipRequest(os.fsencode(folder), request["path"], source, f"key-{number}")))
        assert len(made) == 1
        results.append((request["path"], made[0]))
    return results


def test_tars_of_webdataset_are_indexed_where_they_lie(tmp_path: Path, clips: list[bytes]) -> None:
    from webdataset.writer import TarWriter

    for number in range(2):
        with TarWriter(str(tmp_path / f"{number:03d}.tar")) as writer:
            for i, data in enumerate(clips):
                sample = {"__key__": f"clip{i}", "webm" if i == 3 else "mp4": data, "txt": f"caption {i}"}
                more = (
                    {"cls": 7}
                    if i == 1
                    else {"json": {"label": "juggling", "videoid": "-id", "licence": "CC0"}}
                    if i == 2
                    else {}
                )
                writer.write({**sample, **more})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    folder, tars = find_tars(str(tmp_path / "{000..001}.tar"))
    assert (folder, tars) == (os.fsencode(tmp_path), [b"000.tar", b"001.tar"])
    results = index(tmp_path, "000.tar", "001.tar")
    rows = [result.row for result in results if isinstance(result, IndexedClip)]
    assert len(rows) == len(results) == 8
    for number, row in enumerate(rows):
        data = Path(row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["size"]]
        assert data == clips[number % 4]
        assert row["content_hash"] == content_hash(data)
        assert set(row) == set(SCHEMA.names) - {"root"}  # which the build knows
        assert row["shard"] == str(tmp_path / f"{number // 4:03d}.tar")
    assert [row["num_frames"] for row in rows[:4]] == [16, 17, 18, 20]
    assert [row["codec"] for row in rows[:4]] == ["h264", "h264", "h264", "vp8"]
    assert [row["label"] for row in rows[:4]] == ["caption 0", "7", "juggling", "caption 3"]
    assert [row["extra"] for row in rows[:4]] == [
        None,
        '{"txt": "caption 1"}',
        '{"licence": "CC0", "txt": "caption 2"}',
        None,
    ]
    assert [row["source_id"] for row in rows[:4]] == ["clip0", "clip1", "-id", "clip3"]
    assert rows[6]["path"] == b"001.tar/clip2.mp4"
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_long_and_odd_names(tmp_path: Path, clips: list[bytes], form: int) -> None:
    names = ["a/b.c/clip.1.mp4", "f/" * 60 + "x.MP4", "name with spaces\n.mp4", "-i.mp4"]
    if form != tarfile.USTAR_FORMAT:
        names += ["x" * 300 + ".mp4", "ü" * 120 + ".mp4", os.fsdecode(b"\xff\xfe.mp4")]
    (tmp_path / "0.tar").write_bytes(tar_bytes(dict.fromkeys(names, clips[0]), form))
    results = index_by_path(tmp_path, "0.tar")
    assert [path for path, _ in results] == [b"0.tar/" + os.fsencode(name) for name in names]
    for path, result in results:
        assert isinstance(result, IndexedClip), path
        assert result.row["num_frames"] == 16


def test_side_files_belong_to_the_video_they_lie_beside(tmp_path: Path, clips: list[bytes]) -> None:
    members = {
        "v1.0_a.mp4": clips[0],
        "v1.0_a.json": json.dumps({"label": 3, "split": "val", "start": 1, "end": 2.5, "id": 9}).encode(),
        "v1.0_b.mp4": clips[1],
        "v1.cls": b"both\n",
        "other.mp4": clips[2],
        "sound.wav": b"RIFF",
        "other.json": b'{"label": "apart"}',
        "bare.mp4": clips[0],
        "bare.json": b'[{"label": "not ours"}]',
        "several.mp4": clips[0],
        "several.json": '{"label": ["épée", 7]}'.encode(),
    }
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    rows = [result.row for result in index(tmp_path, "0.tar") if isinstance(result, IndexedClip)]
    names = ("label", "split", "start", "end", "source_id")
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("3", "val", 1.0, 2.5, "9"),
        ("both", "train", None, None, "v1"),
        ("apart", "train", None, None, "other"),
        (None, "train", None, None, "bare"),
        ('["épée", "7"]', "train", None, None, "several"),
    ]


@pytest.mark.parametrize(
    ("kind", "content", "detail"),
    [
        ("json", b'{"label": ', "the .json beside it cannot be read"),
        ("json", b"[" * 100_000, "the .json beside it cannot be read"),
        ("cls", b"\xff\xfe", "the .cls beside it cannot be read"),
        ("json", b'{"label": {"name": "run"}}', 'its label is {"name": "run"}; wanted is text, a number, or a list of these'),
        ("JSON", b'{"label": true}', "its label is true"),
        ("txt", b"x" * ((1 << 20) + 1), "1048577 bytes, more than 1048576"),
    ],
)
def test_a_label_is_not_lost_in_silence(tmp_path: Path, clips: list[bytes], kind: str, content: bytes, detail: str) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes({"a.mp4": clips[0], f"a.{kind}": content}))
    [reject] = index(tmp_path, "0.tar")
    assert isinstance(reject, Reject)
    assert detail in reject.detail


def test_side_files_in_capitals_and_apart(tmp_path: Path, clips: list[bytes]) -> None:
    """WebDataset takes .JSON for .json. Two of one name that lie apart may be anybody's: they are counted, and told of."""
    members = {"CLIP.MP4": clips[0], "CLIP.JSON": b'{"label": 3.0}', "a.b.mp4": clips[0], "1.mp4": clips[1], "2.mp4": clips[2]}
    members |= {"a.b.json": b'{"label": "run"}', "1.cls": b"7", "no.json": b"{}"}
    (tmp_path / "0.tar").write_bytes(tar_bytes(members))
    rows = [result.row for result in index(tmp_path, "0.tar") if isinstance(result, IndexedClip)]
    assert [row["label"] for row in rows] == ["3", "run", "7", None]
    planned = plan("own", pattern=tmp_path / "0.tar")
    told = {"videos without .json, .cls or .txt": 1, ".json, .cls and .txt that belong to no video": 1}
    assert planned.counts == {"tars": 1, "found": 4, **told}
    assert "such as '0.tar/no.json', and 1 videos have none" in planned.notes[0]

    end = -(-len(clips[0]) // 512) * 512 + 512
    one, two = (
        tar_bytes({"a.mp4": clips[0]}, tarfile.USTAR_FORMAT)[:end],
        tar_bytes({"x.mp4": clips[0]}, tarfile.USTAR_FORMAT)[:end],
    )
    side = [tar_bytes({"a.cls": text}, tarfile.USTAR_FORMAT)[:1024] for text in (b"1", b"2")]
    (tmp_path / "1.tar").write_bytes(one + two + side[0] + two + side[1] + bytes(1024))
    planned = plan("own", pattern=tmp_path / "1.tar")
    assert [row["path"] for row in planned.requests.to_pylist()] == [b"1.tar/a.mp4", b"1.tar/x.mp4"]
    assert [(row["path"], row["reason"]) for row in planned.dropped.to_pylist()] == [(b"1.tar/x.mp4", "duplicate")]
    assert planned.counts[".json, .cls and .txt that belong to no video"] == 2
    assert any("1 videos have the name of one before them" in note for note in planned.notes)


def test_labels_that_utf8_cannot_hold(tmp_path: Path, clips: list[bytes]) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes({"a.mp4": clips[0], "a.json": b'{"label": "\\ud800", "id": true}'}))
    [clip] = index(tmp_path, "0.tar")
    assert isinstance(clip, IndexedClip)
    assert (clip.row["label"], clip.row["source_id"]) == ("?", "a")


def test_members_that_are_no_clips_are_rejects(tmp_path: Path, clips: list[bytes]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in {"text.mp4": b"no video", "empty.mp4": b"", "good.mp4": clips[0]}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.mp4")
            info.type, info.linkname = kind, "good.mp4"
            tar.addfile(info)
        folder = tarfile.TarInfo("folder.mp4")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    (tmp_path / "0.tar").write_bytes(buffer.getvalue())
    results = index(tmp_path, "0.tar")
    reasons = [result.reason if isinstance(result, Reject) else None for result in results]
    assert reasons == [Reason.NOT_VIDEO, Reason.NOT_VIDEO, None, Reason.UNSUPPORTED, Reason.UNSUPPORTED]
    assert isinstance(results[4], Reject)
    assert results[4].detail == "it is a link to 'good.mp4', not a file of its own"


def test_short_and_small_clips(tmp_path: Path) -> None:
    short = make_video(tmp_path / "short.mp4", frames=15).read_bytes()
    small = make_video(tmp_path / "small.mp4", frames=20, size="8x8").read_bytes()
    (tmp_path / "0.tar").write_bytes(tar_bytes({"short.mp4": short, "small.mp4": small}))
    results = index(tmp_path, "0.tar")
    assert [getattr(result, "reason", None) for result in results] == [Reason.TOO_SHORT, Reason.TOO_SMALL]


def test_sparse_members(tmp_path: Path) -> None:
    """A header of GNU tar's old sparse format, as `tar --sparse --format=gnu` writes it, by hand: CI may lack GNU tar."""
    info = tarfile.TarInfo("sparse.mp4")
    info.size, info.type = 512, tarfile.GNUTYPE_SPARSE
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (1 << 20, 512)  # one piece of 512 bytes at 1 MiB
    block[483:495] = b"%011o\0" % ((1 << 20) + 512)  # the real size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "0.tar").write_bytes(bytes(block) + b"x" * 512 + bytes(1024))
    [reject] = index(tmp_path, "0.tar")
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.detail) == (Reason.UNSUPPORTED, "it is stored as a sparse file, not as a run of bytes")


def test_offsets_beyond_eight_gigabytes(tmp_path: Path, clips: list[bytes]) -> None:
    """A tar of 9 GiB, nearly all of it a hole on the disk."""
    huge = tarfile.TarInfo("huge.bin")
    huge.size = 9 << 30
    with (tmp_path / "0.tar").open("wb") as file:
        file.write(huge.tobuf(tarfile.GNU_FORMAT))
        file.seek(huge.size, os.SEEK_CUR)
        file.write(tar_bytes({"after.mp4": clips[1]}))
    if (tmp_path / "0.tar").stat().st_blocks > 1 << 15:
        pytest.skip("this file system keeps no holes")
    [clip] = index(tmp_path, "0.tar")
    assert isinstance(clip, IndexedClip)
    assert clip.row["offset"] == (9 << 30) + 1024
    assert clip.row["num_frames"] == 17


def test_a_tar_cut_anywhere_gives_its_whole_members_and_says_what_is_missing(tmp_path: Path, clips: list[bytes]) -> None:
    whole = tar_bytes({f"{i}.mp4": clips[i] for i in range(3)})
    (tmp_path / "whole.tar").write_bytes(whole)
    members, fault = read_members(tmp_path / "whole.tar")
    assert fault is None
    _, second, third = members
    cuts = {
        second.offset - 512: 1,  # between two members
        second.offset - 300: 1,  # in a header
        second.offset: 1,  # before the data
        second.offset + 100: 1,
        third.offset + third.size: 3,  # after the last byte, without an end mark
    }
    for cut, taken in cuts.items():
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        results = index_by_path(tmp_path, "cut.tar")
        clips_taken = [path for path, result in results if isinstance(result, IndexedClip)]
        assert clips_taken == [b"cut.tar/%d.mp4" % i for i in range(taken)], cut
        assert results[-1][0] == b"cut.tar", cut
        for _, reject in results[taken:]:
            assert isinstance(reject, Reject)
            assert reject.reason in (Reason.TRUNCATED, Reason.DAMAGED), (cut, reject)


def test_what_follows_damage_is_not_passed_over(tmp_path: Path, clips: list[bytes]) -> None:
    whole = tar_bytes({f"{i}.mp4": clips[i] for i in range(3)}, tarfile.USTAR_FORMAT)
    (tmp_path / "0.tar").write_bytes(whole)
    second = read_members(tmp_path / "0.tar")[0][1]
    bad_header = bytearray(whole)
    bad_header[second.offset - 500] ^= 1
    cases = {
        "bad": (bytes(bad_header), 1, f"no valid header at byte {second.offset - 512}"),
        "joined": (whole + whole, 3, "data follow"),
        "text": (b"no tar at all" * 100, 0, "cannot be read from its beginning"),
        "empty": (b"", 0, "cannot be read from its beginning"),
        "zeros": (bytes(10240), 0, "none of its 0 members has the extension of a video"),
        "sounds": (tar_bytes({"a.wav": b"x", "b.wav": b"y"}), 0, "none of its 2 members"),
    }
    for name, (content, taken, detail) in cases.items():
        (tmp_path / f"{name}.tar").write_bytes(content)
        results = index(tmp_path, f"{name}.tar")
        assert [isinstance(result, IndexedClip) for result in results] == [True] * taken + [False], name
        assert isinstance(results[-1], Reject)
        assert detail in results[-1].detail, name


def test_headers_that_lead_backwards_end_the_listing(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.mp4")
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")  # base-256: -1024 bytes
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "0.tar").write_bytes(bytes(block) + bytes(1024))
    members, fault = read_members(tmp_path / "0.tar")
    assert members == []
    assert isinstance(fault, RejectedError)


def test_one_name_twice_in_a_tar_counts_once(tmp_path: Path, clips: list[bytes]) -> None:
    first, second = tar_bytes({"a.mp4": clips[0]}, tarfile.USTAR_FORMAT), tar_bytes({"a.mp4": clips[1]})
    cut = 512 + -(-len(clips[0]) // 512) * 512
    (tmp_path / "0.tar").write_bytes(first[:cut] + second)
    [clip] = index(tmp_path, "0.tar")
    assert isinstance(clip, IndexedClip)
    assert clip.row["num_frames"] == 16


def test_one_name_in_two_tars_gives_two_paths(tmp_path: Path, clips: list[bytes]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(tar_bytes({"clip.mp4": clips[0]}))
    folder, tars = find_tars(f"{tmp_path}/{{a,b}}/0.tar")
    assert (folder, tars) == (os.fsencode(tmp_path), [b"a/0.tar", b"b/0.tar"])
    assert root(f"{tmp_path}/{{a,b}}/0.tar") == folder
    assert plan("own", pattern=f"{tmp_path}/{{a,b}}/0.tar").requests["path"].to_pylist() == [
        b"a/0.tar/clip.mp4",
        b"b/0.tar/clip.mp4",
    ]


def test_a_tar_inside_the_dataset_moves_with_it(tmp_path: Path, clips: list[bytes]) -> None:
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    (dataset / "0.tar").write_bytes(tar_bytes({"clip.mp4": clips[0]}))
    (tmp_path / "link").symlink_to(dataset)
    for home in (dataset, tmp_path / "link"):
        [clip] = index(dataset, "0.tar", dataset=home)
        assert isinstance(clip, IndexedClip)
        assert clip.row["shard"] == "0.tar"


@pytest.mark.parametrize("compress", ["gzip", "bz2", "lzma"])
def test_compressed_tars_are_refused(tmp_path: Path, compress: str) -> None:
    import importlib

    data = tar_bytes({"a.mp4": b"x"})
    (tmp_path / "0.tar").write_bytes(importlib.import_module(compress).compress(data))
    with pytest.raises(ValueError, match=r"compressed .* unpack it with"):
        find_tars(str(tmp_path / "{0..0}.tar"))


def test_patterns_that_name_no_tars(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes({}))
    (tmp_path / "odd{0..1}.tar").write_bytes(tar_bytes({}))
    assert find_tars(str(tmp_path / "odd{0..1}.tar"))[1] == [b"odd{0..1}.tar"]  # a name may hold braces
    with pytest.raises(ValueError, match=r"2 of 3 files do not exist; the first is '.*1\.tar'"):
        find_tars(str(tmp_path / "{0..2}.tar"))
    with pytest.raises(ValueError, match="braces do not match"):
        find_tars(str(tmp_path / "{0..2.tar"))
    odd = tmp_path / os.fsdecode(b"\xff.tar")
    odd.write_bytes(tar_bytes({}))
    with pytest.raises(ValueError, match="not UTF-8"):
        find_tars(str(odd))


def test_a_tar_that_changes_after_the_plan(tmp_path: Path, clips: list[bytes]) -> None:
    file = tmp_path / "0.tar"
    file.write_bytes(tar_bytes({"a.mp4": clips[0]}))
    request = ClipRequest(os.fsencode(tmp_path), b"0.tar/a.mp4", "own", "key")
    indexer = MemberIndexer(str(tmp_path / "dataset"))
    [clip] = indexer(request)
    assert isinstance(clip, IndexedClip)
    file.write_bytes(tar_bytes({"b.mp4": clips[0], "c.mp4": clips[0]}))
    [reject] = indexer(request)
    assert isinstance(reject, Reject)
    assert "no longer in the tar" in reject.detail
    file.unlink()
    [reject] = indexer(request)
    assert isinstance(reject, Reject)
    assert reject.reason is Reason.UNREADABLE


def test_listing_reads_headers_only(tmp_path: Path, clips: list[bytes]) -> None:
    (tmp_path / "0.tar").write_bytes(tar_bytes({"a.mp4": clips[0], "a.json": b"{}", "b.mp4": clips[1]}))
    listed = list_videos(tmp_path / "0.tar")
    videos, fault = listed.videos, listed.fault
    assert fault is None
    assert list(videos) == ["a.mp4", "b.mp4"]
    assert [kind for kind, _ in videos["a.mp4"].side_files] == ["json"]
    whole = (tmp_path / "0.tar").read_bytes()
    member = videos["b.mp4"].member
    assert whole[member.offset : member.offset + member.size] == clips[1]
