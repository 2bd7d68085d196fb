"""What `fed-diffmic client status` says of a site that is paused, refuses, or lets nothing in."""

from __future__ import annotations

import re
from pathlib import Path

from client.control import PAUSE, RUNNING, WITHDRAW, control_text, decide, read_control
from client.journal import Journal
from client.start import RUN
from client.status import site_status, status_text
from fed_diffmic.config.compose import compose_site
from fed_diffmic.config.site import SiteConfig
from fed_diffmic.exchange.failures import POLICY_RUN

NAMED = ["policy=standard", "policy.runs=[r]", "policy.datasets=[table]", "policy.classes=[a,b]"]


def config(*settings: str) -> SiteConfig:
    return compose_site(None, ["site.name=South", "coordinator.address=c.example:9443", *settings])


def test_a_pause_is_said_with_its_time_and_how_to_leave_it(tmp_path: Path) -> None:
    decide(tmp_path, PAUSE)
    status = site_status(config(*NAMED), tmp_path)
    assert status["control_since"] > 1e9
    text = status_text(status)
    assert re.search(r"paused since \d{4}-\d\d-\d\d \d\d:\d\d: every request is answered with that", text)
    assert "`fed-diffmic client continue --config FILE`" in text and "c.example:9443" in text
    decide(tmp_path, RUNNING)  # which is what that command does
    assert "paused" not in status_text(site_status(config(*NAMED), tmp_path))
    decide(tmp_path, WITHDRAW)
    assert "--rejoin" in control_text(read_control(tmp_path))
    (tmp_path / "control.json").write_text("{")
    assert "control.json in its folder cannot be read" in control_text(read_control(tmp_path))


def test_what_was_done_and_refused_last_is_said(tmp_path: Path) -> None:
    (tmp_path / RUN).mkdir()
    journal = Journal(tmp_path / RUN)
    journal.add("train", {"run": "r", "stage": "guidance", "round": 3, "rounds": 7}, seconds=4.0)
    text = status_text(site_status(config(*NAMED), tmp_path))
    assert "run r, guidance round 3 of 7: update computed in 4 s" in text and "refused" not in text
    journal.add("query", {"run": "s"}, code=POLICY_RUN)
    text = status_text(site_status(config(*NAMED), tmp_path))
    assert "run s: refused: the site's policy does not name the run" in text and "round 3" in text


def test_a_policy_that_lets_nothing_in_is_said(tmp_path: Path) -> None:
    said = status_text(site_status(config("policy=closed"), tmp_path))
    assert "policy: closed, nothing is named in policy.runs, policy.datasets, policy.classes, policy.stages and" in said
    standard = status_text(site_status(config("policy=standard"), tmp_path))
    assert "nothing is named in policy.runs, policy.datasets, policy.classes: every request will be refused" in standard
    assert "every request" not in status_text(site_status(config(*NAMED), tmp_path))
