"""Who may hold a connection, on a clock of its own."""

from __future__ import annotations

import pytest

from fed_diffmic.transport import seats
from fed_diffmic.transport.seats import Bounds, Counts, Rate, Seat, Seats, address_of


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def room(**bounds: object) -> tuple[Seats, Counts, Clock]:
    clock, counts = Clock(), Counts()
    given = {"per_address": 8, "total": 16, "reserved": 8, "new_per_s": 1e6, "handshakes": 100, **bounds}
    return Seats(Bounds(**given), counts, clock), counts, clock  # type: ignore[arg-type]


def take(held: Seats, address: str, ended: list[str] | None = None) -> Seat:
    seat = held.take(address)
    assert seat is not None
    seat.close = lambda: ended.append(address) if ended is not None else None  # type: ignore[func-returns-value]
    return seat


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("no address", "no address"),
    ],
)
def test_what_an_address_is_counted_by(peer: str, counted: str) -> None:
    assert address_of(peer) == counted


def test_addresses_are_forgotten_with_their_last_connection() -> None:
    held, counts, _ = room()
    for n in range(50):
        first, second = take(held, f"192.0.2.{n}"), take(held, f"192.0.2.{n}")
        held.shaken(first)
        held.admit(second)
        for seat in (first, first, second):  # said twice, it counts once
            held.leave(seat)
    assert not counts.open
    assert (held.strangers, held.handshakes) == (0, 0)
    assert held._strangers == {} and held._shaking == {}


def test_what_is_remembered_of_addresses_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "REMEMBERED", 20)
    held, _, _ = room()
    for n in range(100):
        seat = take(held, f"192.0.2.{n}")
        held.admit(seat)
        held.leave(seat)
    assert len(held._heard) == 20 and len(held._rate) == 20


def test_strangers_hold_their_share_and_the_oldest_of_the_most_goes() -> None:
    held, counts, _ = room()
    ended: list[str] = []
    for _ in range(6):
        take(held, "192.0.2.1", ended)
    take(held, "192.0.2.2", ended), take(held, "192.0.2.3", ended)
    assert held.strangers == 8 and not ended
    for n in range(4, 8):
        take(held, f"192.0.2.{n}", ended)
    assert ended == ["192.0.2.1"] * 4 and held.strangers == 8
    assert counts.refused["connections"] == 4 and counts.open["192.0.2.1"] == 2


def test_sites_have_connections_that_strangers_have_not() -> None:
    held, counts, _ = room()
    ended: list[str] = []
    for n in range(8):
        held.admit(take(held, f"198.51.100.{n}", ended))
    for n in range(20):
        take(held, f"192.0.2.{n}", ended)
    assert held.strangers == 8 and counts.open.total() == 16
    assert len(ended) == 12 and not any(address.startswith("198") for address in ended)
    again = take(held, "198.51.100.3", ended)  # known: a stranger's goes, though strangers have no more than theirs
    held.admit(again)
    assert held.strangers == 7 and counts.open.total() == 16


def test_when_sites_hold_all_the_next_one_is_refused_and_ends_no_site() -> None:
    held, counts, _ = room()
    ended: list[str] = []
    for n in range(16):
        held.admit(take(held, f"198.51.100.{n}", ended))
    assert held.take("192.0.2.1") is None and held.take("198.51.100.1") is None
    assert not ended and counts.refused["connections"] == 2


def test_an_address_from_which_a_site_spoke_is_known_for_a_while() -> None:
    held, _, clock = room()
    held.leave(_admitted(held, "198.51.100.1"))
    clock.now += seats.RECENT_S - 1
    assert take(held, "198.51.100.1").known
    clock.now += 2
    assert not take(held, "198.51.100.1").known


def _admitted(held: Seats, address: str) -> Seat:
    seat = take(held, address)
    held.admit(seat)
    return seat


def test_a_stranger_ends_no_connection_of_a_known_address() -> None:
    held, _, _ = room(total=4, reserved=0)
    ended: list[str] = []
    held.leave(_admitted(held, "198.51.100.1"))
    for _ in range(4):
        take(held, "198.51.100.1", ended)
    assert held.take("192.0.2.1") is None and not ended
    take(held, "198.51.100.1", ended)
    assert ended == ["198.51.100.1"]


def test_one_address_has_so_many_and_its_own_oldest_goes() -> None:
    held, counts, _ = room()
    ended: list[str] = []
    for _ in range(14):
        take(held, "192.0.2.1", ended)
    assert counts.open["192.0.2.1"] == 8 and ended == ["192.0.2.1"] * 6
    assert counts.refused["connections_per_address"] == 6


def test_handshakes_under_way_are_bounded() -> None:
    held, counts, _ = room(handshakes=3, total=100, reserved=0)
    ended: list[str] = []
    for _ in range(3):
        take(held, "192.0.2.1", ended)
    held.shaken(take(held, "192.0.2.2", ended))
    assert ended == ["192.0.2.1"] and held.handshakes == 2
    assert counts.refused["handshakes"] == 1


def test_new_connections_of_an_address_come_at_a_rate() -> None:
    clock = Clock()
    rate = Rate(2.0, 4, clock)
    assert [rate.take("a") for _ in range(6)] == [True] * 4 + [False] * 2
    assert rate.take("b")
    clock.now += 1.0
    assert [rate.take("a") for _ in range(3)] == [True, True, False]
    clock.now += 1000.0
    assert [rate.take("a") for _ in range(5)] == [True] * 4 + [False]


def test_a_hospital_with_many_sites_comes_back_at_once() -> None:
    held, counts, _ = room(per_address=64, total=1024, reserved=512, new_per_s=10.0)
    for _ in range(60):
        held.admit(take(held, "198.51.100.1"))
    assert not counts.refused


def test_a_rate_that_is_passed_is_refused_and_counted() -> None:
    held, counts, clock = room(new_per_s=1.0)
    kept = [held.take("192.0.2.1") for _ in range(20)]
    assert sum(seat is not None for seat in kept) == 16 and counts.refused["connection_rate"] == 4
    clock.now += 1.0
    assert held.take("192.0.2.1") is not None


def test_a_site_holds_so_many_from_all_addresses_and_its_own_oldest_goes() -> None:
    held, counts, _ = room(per_site=4, total=100, reserved=50)
    ended: list[str] = []
    honest = [take(held, "198.51.100.9", ended) for _ in range(3)]
    for seat in honest:
        held.admit(seat, "honest")
    hostile = [take(held, f"192.0.2.{n}", ended) for n in range(40)]
    for seat in hostile:
        held.admit(seat, "hostile")
        held.admit(seat, "honest")  # with another site's key over the same connection it still is the first one's
    assert ended == [f"192.0.2.{n}" for n in range(36)] and counts.refused["connections_per_site"] == 36
    assert counts.open.total() == 7 and not any(seat.over for seat in honest)
    for seat in (*hostile, *honest):
        held.leave(seat)
    assert not counts.open and held._sites == {} and not held._of_sites


def test_many_sites_behind_one_address_do_not_take_each_others_connections() -> None:
    """Each has a question that waits here, a heartbeat and two objects on their way: fifty of them 200 connections."""
    held, counts, clock = room(per_address=64, total=1024, reserved=512)
    ended: list[str] = []
    for n in range(50):
        for _ in range(4):
            seat = take(held, "198.51.100.1", ended)
            held.shaken(seat)
            held.admit(seat, f"site{n}")
            clock.now += 1.0
    assert not ended and not counts.refused
    for _ in range(70):  # and whoever else is behind it has as many as ever
        take(held, "198.51.100.1", ended)
    assert len(ended) == 6 and counts.refused["connections_per_address"] == 6
