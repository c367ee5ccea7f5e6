import threading
import time

from pipeline.workers.decoders import Decoders


def wait_for(pool: Decoders, done: int) -> None:
    deadline = time.monotonic() + 20
    while pool.done < done:
        assert time.monotonic() < deadline, f"{pool.done} of {done} tasks done"
        time.sleep(0.005)


def test_as_many_work_as_are_told_and_in_order() -> None:
    pool, lock = Decoders(2, 6), threading.Lock()
    running, most, order = 0, 0, []

    def task(number: int) -> None:
        nonlocal running, most
        with lock:
            order.append(number)
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        assert 0 <= pool.here.row < 6

    for turn, threads in enumerate((2, 6, 1, 3), 1):
        pool.use(threads)
        time.sleep(0.03)  # those that are too many rest, or wait for a last task
        order.clear()
        most = 0
        for number in range(40):
            pool.submit(task, number)
        wait_for(pool, 40 * turn)
        assert sorted(order) == list(range(40))
        late = [abs(place - number) for place, number in enumerate(order)]
        assert max(late) < 6  # nobody is overtaken for long
        assert threads == 1 or most > 1
    order.clear()
    most = 0
    for number in range(30):
        pool.submit(task, number)
    wait_for(pool, 190)
    assert most <= 3, "the others rest now"
    assert (pool.waiting, pool.done) == (0, 190)


def test_urgent_tasks_come_first() -> None:
    pool, gate, order = Decoders(1, 1), threading.Event(), list[str]()
    pool.submit(lambda: bool(gate.wait()) and None)
    pool.submit(order.append, "last")
    pool.submit_urgent(order.append, "urgent")
    assert pool.waiting >= 2
    gate.set()
    wait_for(pool, 3)
    assert order == ["urgent", "last"]
