import os
from contextlib import closing

from pipeline.sampling import SamplingRecipe
from pipeline.workers.ring import Ring, slot_size

RECIPE = SamplingRecipe(views_per_step=8, views_per_clip=2, input_size=32, patch_size=8, num_frames=8)


def touched(ring: Ring) -> int:
    """Bytes that the memory takes."""
    return os.fstat(ring.memfd).st_blocks * 512


def test_a_large_ring_takes_the_memory_of_the_slots_in_use() -> None:
    with closing(Ring(RECIPE, 4, 1000)) as ring:
        size = slot_size(RECIPE, 4)
        assert ring.nbytes > 1000 * size and touched(ring) < size
        for number in range(300):  # three batches in use at a time
            ring.place(number, max(0, number - 2))
            ring[number].views[:] = number % 256
            for before in range(max(0, number - 2), number):
                assert (ring[before].views == before % 256).all()
        assert touched(ring) < 3 * size + 10 * 4096


def test_another_process_finds_the_batches_where_they_lie() -> None:
    with closing(Ring(RECIPE, 4, 5)) as ring:
        other = Ring(RECIPE, 4, 5, ring.memfd)
        for number, oldest in ((0, 0), (1, 0), (2, 0), (3, 1), (4, 3), (5, 3), (6, 5), (7, 5)):
            ring.place(number, oldest)
            ring[number].rows[:] = number
        assert [other[number].rows[0] for number in (5, 6, 7)] == [5, 6, 7]
        other.place(8, 5)  # a sidecar that goes on where another stopped
        other[8].rows[:] = 8
        assert [ring[number].rows[0] for number in (5, 6, 7, 8)] == [5, 6, 7, 8]
        assert other.memory_of(8).nbytes == slot_size(RECIPE, 4) and other.memory_of(8).nbytes % 4096 == 0
        bytes_of_8 = bytes(ring.memory_of(8))
        assert bytes_of_8.count((8).to_bytes(8, "little")) >= 4
        del other
