"""Preflight on masked sums: too few accepted peers under `required` is a failure, and a stranger is tried."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from client.preflight import peers as peers_module
from client.preflight.peers import check_peers
from fed_diffmic.config.site import CoordinatorConfig, PolicyConfig, SiteConfig, SiteGroup
from fed_diffmic.exchange.masking.virtual import virtual_key
from fed_diffmic.provision.keys import make_site_key, public_text
from fed_diffmic.provision.peers import Peer, _save


@pytest.fixture
def strict(tmp_path: Path) -> SiteConfig:
    """A site that requires masks, with a key of its own."""
    key = tmp_path / "keys" / "site.key"
    make_site_key(key)
    return SiteConfig(
        SiteGroup(name="a", folder=str(tmp_path / "state")),
        CoordinatorConfig(key=str(key)),
        policy=PolicyConfig(secure_aggregation="required", min_sites=2),
    )


def accept(site: SiteConfig, *names: str) -> None:
    keys = {name: public_text(virtual_key(1, name).public_key()) for name in names}
    _save(str(site.site.folder), {name: Peer(name, key, "2026-01-01T00:00:00+00:00") for name, key in keys.items()})


def test_too_few_accepted_peers_fail_where_masks_are_required_and_are_said_elsewhere(strict: SiteConfig) -> None:
    accept(strict, "b")
    (check,) = check_peers(strict)
    assert (check.level, check.exit_code) == ("failed", 2) and "every run will be refused" in check.cause
    assert "provision peers accept" in check.remedy
    allowed = replace(strict, policy=replace(strict.policy, secure_aggregation="allowed"))
    (check,) = check_peers(allowed)
    assert check.level == "passed" and "would be refused (1 other sites are accepted, 2 are needed)" in check.cause
    accept(strict, "b", "c")
    (check,) = check_peers(strict)
    assert check.level == "passed" and "a stranger among them is refused" in check.cause
    (check,) = check_peers(replace(strict, policy=replace(strict.policy, secure_aggregation="off")))
    assert "no masked sum" in check.cause


def test_a_program_that_would_sum_with_a_stranger_fails(strict: SiteConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(strict, "b", "c")
    monkeypatch.setattr(peers_module.MaskingSite, "_check_company", lambda self, names: None)
    (check,) = check_peers(strict)
    assert (check.level, check.exit_code) == ("failed", 1)
