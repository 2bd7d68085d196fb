"""What a site makes of a run's precision: private updates are float32, and a choice is kept at the site."""

from dataclasses import replace

import pytest

from client import tasks
from client.site import Site
from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import ConfigError
from tests.client.test_tasks import PRIVACY, header
from tests.toy import toy_site, toy_spec


def site_of(folder, **more):
    return Site("a", folder / "sites" / "a", toy_site("a", 1), "cpu", **more)


@pytest.mark.parametrize(("asked", "refused"), [("bfloat16", True), ("auto", False), ("device", False)])
def test_a_private_update_is_not_made_in_bfloat16(monkeypatch, tmp_path, asked, refused):
    made = []
    monkeypatch.setattr(tasks, "private_round", lambda *_: made.append(1))
    spec = replace(toy_spec(), precision=asked)

    def update(privacy, ledger="echo"):
        tasks.update(site_of(tmp_path, privacy=privacy), spec, header(spec, ledger=ledger), None, None, {}, {})

    if not refused:
        update(PRIVACY)
        assert made == [1]
        return
    with pytest.raises(ConfigError, match=r"run\.precision=bfloat16"):
        update(PRIVACY)
    monkeypatch.setattr(tasks, "local_update", lambda *_: made.append(2))
    update(PrivacyConfig(), ledger="")
    assert made == [2]


def test_virtual_sites_share_a_choice_and_a_real_one_has_its_own(tmp_path):
    spec = toy_spec()
    virtual, real = (tasks.local_round(site_of(tmp_path, real=real), spec, header(spec)) for real in (False, True))
    assert virtual.choices == tmp_path / "sites" and real.choices == tmp_path / "sites" / "a"
