"""A site with an undelivered reply, and a coordinator that has a new database: the site answers the next run."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from fed_diffmic.provision.roster import Roster
from fed_diffmic.transport.control import Control
from fed_diffmic.transport.processes import free_port
from fed_diffmic.transport.superlink import LinkSettings, RunningLink, start_superlink
from tests.transport.test_supernode import Asked, Site, credentials, wait

__all__ = ["credentials"]  # the fixture


def start(settings: LinkSettings, credentials: Path) -> RunningLink:
    running = start_superlink(settings, 120.0)
    control = Control(running)
    control.register([entry.public_key for entry in Roster.load(credentials / "roster.json").sites])
    control.close()
    return running


@pytest.mark.timeout(900)
def test_a_reply_of_a_run_that_the_superlink_does_not_know_is_dropped(credentials: Path, tmp_path: Path) -> None:
    settings = LinkSettings(
        folder=str(tmp_path / "link"), host="127.0.0.1", port=free_port(),
        certificate=str(credentials / "server/server.crt"), key=str(credentials / "server/server.key"),
        ca=str(credentials / "ca/ca.crt"), roster=str(credentials / "roster.json"),
    )  # fmt: skip
    link = start(settings, credentials)
    site = Site(credentials, link, tmp_path / "site")
    links = [link]
    try:
        node, worker = site.start_node(), site.start_worker()
        Asked(link)
        wait(lambda: site.has_task(worker))
        os.kill(link.child.pid, signal.SIGSTOP)
        site.go()
        wait(site.spool.has_reply)
        node.kill()
        link.child.kill()
        shutil.rmtree(settings.folder)  # the coordinator's disk was lost, or it set its database aside
        links.append(start(replace(settings, nonce="7" * 32), credentials))
        site.start_node()
        assert Asked(links[-1]).answer()["pid"] == worker.pid
        log = (tmp_path / "site" / "node.log").read_text()
        assert log.count("an undelivered reply is dropped: the coordinator does not know this run") == 1
        assert len(site.children) == 2 and site.children[-1].poll() is None  # it was not started again
    finally:
        site.end()
        for one in links:
            one.child.kill()
