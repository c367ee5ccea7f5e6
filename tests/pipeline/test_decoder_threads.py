import threading
import time

from pipeline.decoder_threads import DecoderThreads


def test_as_many_work_as_are_told_and_in_order() -> None:
    pool, lock = DecoderThreads(2, 6), threading.Lock()
    running, most, order = 0, 0, []

    def task(number: int) -> int:
        nonlocal running, most
        with lock:
            order.append(number)
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        assert 0 <= pool.here.row < 6
        return number

    for threads in (2, 6, 1, 3):
        pool.use(threads)
        time.sleep(0.03)  # those that are too many rest, or wait for a last task
        order.clear()
        most = 0
        tasks = [pool.submit(task, number) for number in range(40)]
        assert [each.result() for each in tasks] == list(range(40))
        late = [abs(place - number) for place, number in enumerate(order)]
        assert max(late) < 6  # nobody is overtaken for long
        assert threads == 1 or most > 1
    order.clear()
    most = 0
    for each in [pool.submit(task, number) for number in range(30)]:
        each.result()
    assert most <= 3, "the others rest now"
    assert (pool.waiting, pool.done) == (0, 190)


def test_errors_reach_who_asks_and_urgent_tasks_come_first() -> None:
    pool, gate, order = DecoderThreads(1, 1), threading.Event(), []
    first = pool.submit(gate.wait)
    failing = pool.submit(lambda: 1 // 0)
    last = pool.submit(order.append, "last")
    pool.submit_urgent(order.append, "urgent")
    assert pool.waiting >= 3
    gate.set()
    last.result()
    assert order == ["urgent", "last"]
    assert first.result() and isinstance(failing.exception(), ZeroDivisionError)
