"""A splice and a loss, which FFmpeg calls by the same name."""

import io
from itertools import pairwise

import pytest
from small_videos import X264, make_video

from dataset_builders.media.transport_stream import is_only_spliced

VIDEO = 0x100  # what FFmpeg calls its first stream


@pytest.fixture(scope="module")
def packets(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = make_video(tmp_path_factory.mktemp("ts") / "x.ts", *X264, "-b:v", "800k", "-vf", "noise=alls=40:allf=t")
    data = path.read_bytes()
    return [data[begin : begin + 188] for begin in range(0, len(data), 188)]


def judged(packets: list[bytes], before: int = 0, behind: int = 0) -> bool:
    data = b"".join(bytes(before) + packet + bytes(behind) for packet in packets)
    return is_only_spliced(io.BytesIO(data), before, None, VIDEO)


@pytest.mark.parametrize(("before", "behind"), [(0, 0), (4, 0), (0, 16)])
def test_only_a_splice_between_pictures_is_one(packets: list[bytes], before: int, behind: int) -> None:
    assert not judged(packets, before, behind)  # nothing is broken: a packet was called corrupt for another reason
    assert judged([*packets, *packets], before, behind)
    assert judged([*packets, *packets, *packets], before, behind)
    video = [place for place, packet in enumerate(packets) if packet[1] & 0x1F == VIDEO >> 8 and packet[2] == VIDEO & 255]
    starts = [place for place in video if packets[place][1] & 0x40]
    for begin, end in pairwise(starts[2:]):
        inside = [place for place in video if begin <= place < end]
        for lost in {inside[0], inside[len(inside) // 2], inside[-1]}:
            assert not judged([*packets[:lost], *packets[lost + 1 :]], before, behind) or len(inside) == 1
    broken = [*packets[: starts[5]], *packets]  # cut between two pictures, and a file that begins there
    assert judged(broken, before, behind)
    flagged = packets[starts[3]]
    broken[starts[3]] = flagged[:1] + bytes([flagged[1] | 0x80]) + flagged[2:]
    assert not judged(broken, before, behind)
    assert not judged([*packets[:-1], packets[-1][:100], *packets], before, behind)  # out of step
