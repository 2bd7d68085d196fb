"""Many questions at once: a held one has no thread, nothing is lost, and nobody rings for others."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter, deque
from typing import Any

import anyio
import pytest

from fed_diffmic.transport import bells as module
from fed_diffmic.transport.bells import Bells

THREADS = 3


class Link:
    """Stands in for Flower's application: it judges whose node it is, and looks for messages in a few threads."""

    def __init__(self, nodes: dict[str, int], jitter: random.Random | None = None) -> None:
        self.nodes, self.jitter = nodes, jitter
        self.there: dict[int, deque[int]] = {node: deque() for node in nodes.values()}
        self.threads = anyio.CapacityLimiter(THREADS)
        self.seen: Counter[str] = Counter()

    def pause(self) -> None:
        if self.jitter is not None:
            time.sleep(self.jitter.random() * 0.004)

    def store(self, node: int, message: int, bells: Bells) -> None:
        """From any thread: the message is there, and then it is said."""
        self.pause()
        self.there[node].append(message)
        self.pause()
        bells.ring(node)

    def app(self, site: str, node: int) -> Any:
        def look() -> bytes:
            self.pause()
            found = self.there[node].popleft() if self.there[node] else None
            self.pause()
            return b"" if found is None else str(found).encode()

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            self.seen[site] += 1
            if self.nodes[site] != node:
                await send({"type": "http.response.start", "status": 401})
                await send({"type": "http.response.body", "body": b"not yours"})
                return
            body = await anyio.to_thread.run_sync(look, limiter=self.threads)
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body", "body": body})

        return answer


async def ask(
    bells: Bells, link: Link, site: str, node: int, left: asyncio.Event | None = None
) -> tuple[int, bytes] | None:
    """Status and body of an answer; none where there was none."""
    given, sent = [{"type": "http.request", "body": b"question", "more_body": False}], []

    async def receive() -> Any:
        if given:
            return given.pop()
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await bells.answer(node, link.app(site, node), {}, receive, send, site)
    return (sent[0]["status"], sent[1]["body"]) if sent else None


async def held(bells: Bells, link: Link, site: str, node: int, left: asyncio.Event | None = None) -> asyncio.Task[Any]:
    """A question of a site that Flower knows and that has nothing to do: it waits when this returns."""
    await ask(bells, link, site, node)
    await ask(bells, link, site, node)
    task = asyncio.ensure_future(ask(bells, link, site, node, left))
    await asyncio.sleep(0.01)
    assert not task.done()
    return task


def test_fifty_held_questions_have_no_thread_and_each_gets_its_own_message() -> None:
    async def all_of_it() -> None:
        nodes = {f"site{n}": 1000 + n for n in range(50)}
        bells, link = Bells(30.0), Link(nodes)
        tasks = {site: await held(bells, link, site, node) for site, node in nodes.items()}
        assert link.threads.borrowed_tokens == 0
        begun = time.monotonic()  # what else comes needs a thread, and there are few
        await asyncio.gather(
            *(anyio.to_thread.run_sync(time.sleep, 0.001, limiter=link.threads) for _ in range(4 * THREADS))
        )
        assert time.monotonic() - begun < 5.0 and not any(task.done() for task in tasks.values())
        for node in nodes.values():
            link.store(node, node, bells)
        found = dict(zip(tasks, await asyncio.wait_for(asyncio.gather(*tasks.values()), 20.0), strict=True))
        assert found == {site: (200, str(node).encode()) for site, node in nodes.items()}

    asyncio.run(all_of_it())


@pytest.mark.parametrize("seed", range(3))
def test_no_ring_is_lost_between_a_look_and_the_wait(seed: int) -> None:
    """Messages come from threads at any moment of a question; each is handed out once, and none waits for the time."""

    async def all_of_it() -> None:
        nodes, each = {f"site{n}": 1000 + n for n in range(6)}, 25
        bells, link = Bells(60.0), Link(nodes, random.Random(seed))
        came: dict[str, list[int]] = {site: [] for site in nodes}

        def push(node: int) -> None:
            for message in range(each):
                link.store(node, message, bells)

        async def site(name: str) -> None:
            while len(came[name]) < each:
                answer = await ask(bells, link, name, nodes[name])
                assert answer is not None and answer[0] == 200
                if answer[1]:
                    came[name].append(int(answer[1]))

        pushing = [threading.Thread(target=push, args=(node,)) for node in nodes.values()]
        for thread in pushing:
            thread.start()
        await asyncio.wait_for(asyncio.gather(*map(site, nodes)), 30.0)
        for thread in pushing:
            thread.join()
        assert all(got == list(range(each)) for got in came.values())

    asyncio.run(all_of_it())


def test_a_later_question_takes_the_place_of_an_earlier_one() -> None:
    """Whose asker may be gone without a word: what comes then is for the later one."""

    async def all_of_it() -> None:
        bells, link = Bells(30.0), Link({"alpha": 7})
        earlier = await held(bells, link, "alpha", 7)
        later = asyncio.ensure_future(ask(bells, link, "alpha", 7))
        assert await asyncio.wait_for(earlier, 5.0) == (200, b"")
        assert not later.done()
        many = [asyncio.ensure_future(ask(bells, link, "alpha", 7)) for _ in range(30)]
        await asyncio.sleep(0.05)
        assert [task.done() for task in (later, *many)] == [True] * 30 + [False]  # one is held, however many it asks
        seen = link.seen["alpha"]
        link.store(7, 1, bells)
        assert await asyncio.wait_for(many[-1], 5.0) == (200, b"1")
        assert link.seen["alpha"] == seen + 1 and all(task.result() == (200, b"") for task in many[:-1])

    asyncio.run(all_of_it())


def test_when_the_bell_rings_as_a_later_question_comes_the_earlier_one_gets_nothing() -> None:
    async def all_of_it() -> None:
        bells, link = Bells(30.0), Link({"alpha": 7})
        earlier = await held(bells, link, "alpha", 7)
        link.store(7, 1, bells)
        later = asyncio.ensure_future(ask(bells, link, "alpha", 7))
        assert await asyncio.wait_for(asyncio.gather(earlier, later), 5.0) == [(200, b""), (200, b"1")]

    asyncio.run(all_of_it())


def test_a_question_for_anothers_node_is_refused_at_once_and_touches_nothing() -> None:
    async def all_of_it() -> None:
        bells, link = Bells(30.0), Link({"alpha": 7, "mallory": 8})
        honest = await held(bells, link, "alpha", 7)
        await held(bells, link, "mallory", 8)
        for node in (7, module.SUPERLINK_NODE_ID, *range(100, 100 + 2 * 64)):
            link.there.setdefault(node, deque())
            assert await asyncio.wait_for(ask(bells, link, "mallory", node), 5.0) == (401, b"not yours")
        assert not honest.done() and set(bells._bells) == {7, 8}
        link.store(7, 1, bells)
        assert await asyncio.wait_for(honest, 5.0) == (200, b"1")

    asyncio.run(all_of_it())


def test_a_site_that_is_another_node_now_has_the_bell_of_that_one() -> None:
    async def all_of_it() -> None:
        nodes = {"alpha": 7}
        bells, link = Bells(30.0), Link(nodes)
        await ask(bells, link, "alpha", 7)
        nodes["alpha"], link.there[9] = 9, deque()
        assert await ask(bells, link, "alpha", 7) == (401, b"not yours")
        waits = await held(bells, link, "alpha", 9)
        assert set(bells._bells) == {9}
        link.store(9, 1, bells)
        assert await asyncio.wait_for(waits, 5.0) == (200, b"1")

    asyncio.run(all_of_it())
