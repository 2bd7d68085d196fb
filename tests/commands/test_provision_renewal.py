"""Keys, kits, certificates and authorities that follow one another, as ``fed-diffmic provision`` renews them."""

import re
from pathlib import Path

import pytest

from fed_diffmic.config.compose import compose_site
from fed_diffmic.config.network_checks import check_site_start
from fed_diffmic.errors import ConfigError
from fed_diffmic.provision.certificates import issued_by, load_certificate, load_certificates, server_names
from fed_diffmic.provision.keys import load_private
from tests.commands.provisioning import CONFIG


def test_a_revoked_site_comes_back_with_a_new_key_only(consortium):
    digits = consortium.digits(consortium.runs("site-key", "a/site.key"))
    consortium.enrol("a", digits)
    consortium.runs("revoke", "a", "--reason", "laptop stolen", *CONFIG)
    words = ("--key", "a/site.key.pub", "--institution", "A", "--fingerprint", digits, *CONFIG)
    assert "was revoked (laptop stolen)" in consortium.fails("enrol", "a", *words)
    consortium.enrol("a", consortium.digits(consortium.runs("site-key", "a/new.key")), "a/new.key.pub")
    assert len(consortium.roster().sites) == 1


def test_a_sites_key_is_rotated(consortium):
    site = consortium.site("a")
    digits = consortium.digits(consortium.runs("site-key", "a/new.key"))
    renew = ("renew", "site", "a", "--key", "a/new.key.pub", *CONFIG)
    assert "not the digits of this key" in consortium.fails(*renew, "--fingerprint", digits[::-1])
    consortium.runs(*renew, "--fingerprint", digits)
    assert consortium.roster().site("a").key == load_private("a/new.key").public_key()
    consortium.kit("a", "a2.kit")
    assert "another key than the one given" in consortium.fails(
        "open-kit", "a2.kit", *consortium.opening("a"), "--update"
    )
    out = consortium.runs("open-kit", "a2.kit", "--key", "a/new.key", "--folder", "a", "--update")
    assert f"coordinator.key is {site.coordinator.key}, the kit says {Path('a/new.key').absolute()}" in out
    assert "has this key already" in consortium.fails(*renew, "--fingerprint", digits)


def test_a_site_without_the_coordinators_key_does_not_start_and_what_it_is_told_to_do_works(consortium, tmp_path):
    (tmp_path / "table.csv").write_text("image,label\n")
    consortium.site("a", "--data", "table.csv")
    with pytest.raises(ConfigError, match="coordinator.public_key") as caught:
        check_site_start(compose_site(Path("a/site.yaml"), ["coordinator.public_key=null"]))
    assert "coordinator.pub" in caught.value.remedy and "open-kit --update" in caught.value.remedy
    Path("a/coordinator.pub").unlink()
    with pytest.raises(ConfigError, match="coordinator.public_key"):
        check_site_start(compose_site(Path("a/site.yaml"), []))
    consortium.runs("open-kit", "a.kit", *consortium.opening("a"), "--update")
    check_site_start(compose_site(Path("a/site.yaml"), []))
    insecure = ["coordinator.public_key=null", "coordinator.insecure=true", "coordinator.address=127.0.0.1:1"]
    check_site_start(compose_site(Path("a/site.yaml"), insecure))


def test_an_update_needs_no_phone_call_and_leaves_the_sites_own_file(consortium):
    consortium.site("a")
    mine = Path("a/site.yaml").read_text() + "# mine\n"
    Path("a/site.yaml").write_text(mine)
    config = Path("coordinator/server.yaml")
    config.write_text(config.read_text().replace("[benign, malignant]", "[malignant, benign]"))
    consortium.kit("a", "a2.kit", "--address", "10.0.0.1:9443")
    out = consortium.runs("open-kit", "a2.kit", *consortium.opening("a"), "--update")
    assert "coordinator.address is fl.example.org:9443, the kit says 10.0.0.1:9443" in out
    assert "dataset.classes is ['benign', 'malignant'], the kit says ['malignant', 'benign']" in out
    assert Path("a/site.yaml").read_text() == mine
    assert "--data has no use" in consortium.fails(
        "open-kit", "a2.kit", *consortium.opening("a"), "--update", "--data", "x"
    )
    assert "there is no kit" in consortium.fails(
        "open-kit", "a2.kit", "--key", "a/site.key", "--folder", "b", "--update"
    )


def test_an_update_signed_by_someone_else_needs_the_phone(consortium, tmp_path):
    consortium.site("a")
    kept = Path("a/ca.crt").read_bytes()
    consortium.runs("ca", "evil-ca")
    consortium.runs("server", "evil", "--ca", "evil-ca", "--name", "evil.example.org")
    Path("evil/roster.json").write_bytes(Path("coordinator/roster.json").read_bytes())
    out = consortium.runs("kit", "a", "--out", "evil.kit", "--config", "evil/server.yaml")
    update = ("open-kit", "evil.kit", *consortium.opening("a"), "--update")
    assert "signed by another key" in consortium.fails(*update)
    assert Path("a/ca.crt").read_bytes() == kept
    consortium.runs(
        *update, "--fingerprint", consortium.digits(out)
    )  # the coordinator did replace its key, and said so
    assert Path("a/ca.crt").read_bytes() != kept


def test_the_coordinators_certificate_is_renewed_in_place(consortium):
    consortium.site("a")
    key = Path("coordinator/server.key").read_bytes()
    out = consortium.runs("renew", "server", "coordinator", "--ca", "ca", "--name", "second.example.org", "--days", 20)
    assert "fl.example.org, second.example.org, localhost" in out
    assert Path("coordinator/server.key").read_bytes() == key
    assert issued_by(load_certificate("coordinator/server.crt"), load_certificate("a/ca.crt"))
    assert re.search(
        "WARNING: the coordinator's certificate expires in (19|20) days", consortium.runs("roster", *CONFIG)
    )
    assert "WARNING" in consortium.runs("kit", "a", "--out", "a2.kit", *CONFIG)


def test_nobody_gets_a_kit_for_an_expired_certificate(consortium):
    consortium.enrol("a", consortium.digits(consortium.runs("site-key", "a/site.key")))
    consortium.runs("renew", "server", "coordinator", "--ca", "ca", "--days", 1e-9)
    assert "WARNING: the coordinator's certificate expired" in consortium.runs("roster", *CONFIG)
    assert "certificate expired on" in consortium.fails("kit", "a", "--out", "a.kit", *CONFIG)


def test_the_ca_gets_a_longer_life(consortium):
    consortium.site("a")
    before = load_certificate("a/ca.crt")
    consortium.runs("renew", "ca", "ca", "--days", 5000)
    consortium.runs("renew", "trust", "coordinator", "--ca", "ca")
    assert len(load_certificates(Path("coordinator/ca.crt").read_bytes(), "")) == 1
    consortium.kit("a", "a2.kit")
    consortium.runs("open-kit", "a2.kit", *consortium.opening("a"), "--update")
    after = load_certificate("a/ca.crt")
    assert after.public_key() == before.public_key()
    assert after.not_valid_after_utc > before.not_valid_after_utc


def test_one_ca_follows_another_and_at_every_step_sites_can_come_in(consortium):
    consortium.site("a")

    def trusted_by_site():
        server = load_certificate("coordinator/server.crt")
        return any(issued_by(server, ca) for ca in load_certificates(Path("a/ca.crt").read_bytes(), ""))

    consortium.runs("ca", "ca2", "--name", "Skin consortium, second")
    assert "renew trust" in consortium.fails("renew", "server", "coordinator", "--ca", "ca2")
    assert "does not hold this CA" in consortium.fails("renew", "trust", "coordinator", "--drop", "ca2")
    assert consortium.runs("renew", "trust", "coordinator", "--ca", "ca2").count("trusted:") == 2
    assert "issued the coordinator's certificate" in consortium.fails("renew", "trust", "coordinator", "--drop", "ca")
    assert trusted_by_site()
    consortium.kit("a", "a2.kit")
    consortium.runs("open-kit", "a2.kit", *consortium.opening("a"), "--update")
    assert trusted_by_site()
    consortium.runs("renew", "server", "coordinator", "--ca", "ca2")
    assert server_names(load_certificate("coordinator/server.crt"))[0] == ["fl.example.org", "localhost"]
    assert trusted_by_site()
    assert consortium.runs("renew", "trust", "coordinator", "--drop", "ca").count("trusted:") == 1
    consortium.kit("a", "a3.kit")
    consortium.runs("open-kit", "a3.kit", *consortium.opening("a"), "--update")
    assert trusted_by_site()
    assert "not later than" in consortium.fails("open-kit", "a2.kit", *consortium.opening("a"), "--update")
    assert trusted_by_site()
