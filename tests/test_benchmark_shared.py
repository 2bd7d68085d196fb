"""The program that measures rounds with shared noise: what it asks of everybody may run, and what it tells is right.

The consortium itself is real processes and is started by hand.
"""

import pytest

from benchmarks import consortium_shared
from benchmarks.consortium_memory import names
from benchmarks.consortium_shared import (
    BEGIN,
    END,
    HEAD,
    MASKED,
    PLAIN,
    SHARED,
    WAYS,
    Told,
    bounds,
    filled,
    honest,
    rows,
    rules,
    settings,
    site_settings,
    table,
    told,
)
from client.distributed import check_company
from fed_diffmic.config.compose import compose_server, compose_site
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import UsageError
from tests.consortium.harness import Consortium
from tests.consortium.link import Link
from tests.consortium.settings import overrides


@pytest.mark.parametrize(("model", "number"), [("tiny", 4), ("compact", 10)])
def test_coordinator_and_sites_take_the_settings_of_every_way(tmp_path, model, number):
    made = Consortium(tmp_path, tmp_path, settings(PLAIN, model, 4), sites=names(number), run=bounds(number))
    made.set_policy(made.sites[0], **rules(number))
    for way in WAYS:
        given = [s for s in overrides(settings(way, model, 4)) if not s.startswith("seed=")]
        config = compose_server(made.server_yaml, given)
        assert config.stages.guidance.encoders == "frozen" and config.stages.diffusion.rounds == 0
        assert (config.strategy.secure_aggregation == "masked") == (way != PLAIN)
        site = compose_site(made.site_yaml[made.sites[0]], site_settings(way, number))
        assert (site.privacy.mechanism == "distributed") == (way == SHARED)


def test_the_honest_sites_that_are_assumed_are_enough_for_a_sum_of_so_many():
    for sites in range(3, 51):
        check_company(PrivacyConfig(honest_sites=honest(sites)), rules(sites)["min_sites"], sites)


def test_the_first_and_last_readings_make_a_round_and_a_site_of_it():
    done = [{"bytes_sent": 8_000, "seconds": 2.0}, {"bytes_sent": 4_000, "seconds": 3.0}]
    cpu = ({"worker": 4.0, "coordinator": 1.0}, {"worker": 20.0, "coordinator": 2.0, "SuperLink": 1.0})
    one = told(done, cpu, ((100, 200), (900, 1000)), sites=4)
    assert (one.seconds, one.tensors, one.up, one.down) == ([2.0, 3.0], 1500.0, 100.0, 100.0)
    assert one.cpu_s == {"worker": 2.0, "coordinator": 0.5, "SuperLink": 0.5} and one.together == 3.0


def test_rows_hold_ratios_to_the_plain_run_and_a_page_keeps_other_rows():
    found = {
        way: Told([1.0 * n, 2.0 * n, 3.0 * n], 1e6, 2e6, 3e6, {"worker": 0.5 * n}) for n, way in enumerate(WAYS, 1)
    }
    lines = rows("tiny", 4, found)
    assert [line.split(" | ")[4] for line in lines] == ["1.00", "2.00", "3.00"]
    assert [line.split(" | ")[-2] for line in lines] == ["1.00", "2.00", "3.00"]
    assert all(line.count("|") == len(HEAD) + 1 for line in [*lines, *table(lines).splitlines()[:1]])
    page = filled(f"before\n{BEGIN}\n{END}\nafter", rows("compact", 10, found))
    page = filled(filled(page, lines), rows("tiny", 10, {**found, MASKED: found[SHARED]}))
    again = filled(page, lines)
    assert again == page and page.startswith("before\n") and page.endswith("\nafter")
    keys = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith(("| tiny", "| compact"))]
    assert keys == [["| tiny", "4"]] * 3 + [["| tiny", "10"]] * 3 + [["| compact", "10"]] * 3
    with pytest.raises(ValueError, match="no place"):
        filled("a page", lines)


def test_a_page_that_cannot_take_the_rows_is_told_of_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(consortium_shared, "run_ways", lambda *_: pytest.fail("run"))
    with pytest.raises(UsageError, match="no page"):
        consortium_shared.measure_shared(tmp_path, "tiny", [4], 4, tmp_path / "nothing.md")
    (tmp_path / "page.md").write_text("no marks\n")
    with pytest.raises(ValueError, match="no place"):
        consortium_shared.measure_shared(tmp_path, "tiny", [4], 4, tmp_path / "page.md")


def test_a_link_counts_what_it_passes_each_way():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as far:
        link = Link(far.getsockname()[1])
        with socket.create_connection(("127.0.0.1", link.port)) as near:
            other, _ = far.accept()
            near.sendall(b"12345")
            assert other.recv(5) == b"12345"
            other.sendall(b"123")
            assert near.recv(3) == b"123"
            assert (link.up, link.down) == (5, 3)
            other.close()
        link.close()
