"""One at a time, a bounded queue, bounded waits."""

import asyncio
import threading
import time

import pytest

from fed_diffmic.deadline import OutOfTimeError, check_time
from fed_diffmic.inference.desk import BusyError, Desk


def test_one_at_a_time_in_the_order_of_asking():
    running, most, order = [0], [0], []

    def work(number):
        running[0] += 1
        most[0] = max(most[0], running[0])
        order.append(number)
        time.sleep(0.01)
        running[0] -= 1
        return number

    async def main():
        desk = Desk(8, 30)
        found = await asyncio.gather(*(desk.ask(lambda n=n: work(n)) for n in range(6)))
        await asyncio.sleep(0)
        assert desk.waiting == 0
        desk.close()
        return found

    assert asyncio.run(main()) == list(range(6)) == order
    assert most[0] == 1


def test_who_finds_the_queue_full_is_told_at_once_and_a_place_is_free_when_its_work_is_done():
    gate = threading.Event()

    async def main():
        desk = Desk(1, 30)
        first = asyncio.ensure_future(desk.ask(gate.wait))
        second = asyncio.ensure_future(desk.ask(lambda: "second"))
        await asyncio.sleep(0.01)
        try:
            with pytest.raises(BusyError):
                await asyncio.wait_for(desk.ask(lambda: "third"), 5)
        finally:
            gate.set()
        assert await first and await second == "second"
        await asyncio.sleep(0)
        assert await desk.ask(lambda: "fourth") == "fourth"
        desk.close()

    asyncio.run(main())


def test_what_takes_too_long_is_stopped_and_keeps_its_place_until_then():
    seen = []

    def endless():
        while True:
            time.sleep(0.005)
            try:
                check_time()
            except OutOfTimeError:
                seen.append("stopped")
                raise

    async def main():
        desk = Desk(0, 0.05)
        with pytest.raises(OutOfTimeError):
            await desk.ask(endless)
        for _ in range(400):
            if not desk.waiting:
                break
            await asyncio.sleep(0.005)
        assert desk.waiting == 0 and seen == ["stopped"]
        assert await desk.ask(lambda: 1) == 1
        desk.close()

    asyncio.run(main())


def test_who_waited_too_long_is_not_computed_for():
    gate, done = threading.Event(), []

    async def main():
        desk = Desk(3, 0.05)
        first = asyncio.ensure_future(desk.ask(gate.wait))
        second = asyncio.ensure_future(desk.ask(lambda: done.append("late")))
        for one in (first, second):
            with pytest.raises(OutOfTimeError):
                await one
        gate.set()
        for _ in range(400):
            if not desk.waiting:
                break
            await asyncio.sleep(0.005)
        desk.close()

    asyncio.run(main())
    assert done == []


def test_an_error_of_the_work_is_the_askers():
    async def main():
        desk = Desk(0, 30)
        with pytest.raises(ZeroDivisionError):
            await desk.ask(lambda: 1 / 0)
        desk.close()

    asyncio.run(main())
