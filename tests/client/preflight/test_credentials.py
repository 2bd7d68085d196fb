"""Keys and certificates that cannot be used, each with what to do."""

import shutil
from datetime import datetime, timedelta

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from client.preflight.credentials import check_credentials, read_key, read_kit
from fed_diffmic.provision import certificates
from fed_diffmic.provision.authority import make_authority


def look(config):
    return {check.name: check for check in check_credentials(config)}


def test_as_the_kit_left_them(site):
    checks = look(site)
    assert {check.level for check in checks.values()} == {"passed"}
    assert checks["credentials.key"].facts["fingerprint"]
    assert read_key(site.coordinator) is not None and read_kit(site.coordinator).site == "north"


def test_a_key_that_others_may_read(site, way, consortium, tmp_path):
    copy = shutil.copy(consortium.key("north"), tmp_path / "open.key")
    (tmp_path / "open.key").chmod(0o644)
    check = look(way(site, key=str(copy)))["credentials.key"]
    assert (check.level, check.exit_code) == ("failed", 2)
    assert "chmod 600" in check.remedy


def test_a_key_of_a_kind_that_flower_refuses(site, way, tmp_path):
    path = tmp_path / "ed.key"
    path.write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)
    config = way(site, key=str(path))
    check = look(config)["credentials.key"]
    assert check.level == "failed" and "Ed25519" in check.cause
    assert read_key(config.coordinator) is None


def test_another_key_than_the_enrolled_one(site, way, consortium):
    check = look(way(site, key=str(consortium.key("stranger"))))["credentials.kit"]
    assert check.level == "failed" and "enrolled" in check.cause


def test_another_name_or_address_than_the_kits(site, way, kit_of):
    kit_of(site="south", address="elsewhere.example.org:1")
    check = look(site)["credentials.kit"]
    assert check.level == "failed"
    assert "the kit says south" in check.cause and "elsewhere.example.org:1" in check.cause


def test_no_kit_to_compare_with(site, way, tmp_path):
    copy = shutil.copy(str(site.coordinator.ca), tmp_path / "ca.crt")
    assert look(way(site, ca=str(copy)))["credentials.kit"].level == "warning"


@pytest.mark.parametrize(
    ("missing", "check", "level"),
    [
        ("ca", "credentials.ca", "failed"),
        ("key", "credentials.key", "failed"),
        ("public_key", "credentials.coordinator", "failed"),
    ],
)
def test_what_is_not_configured(site, way, missing, check, level):
    assert look(way(site, **{missing: None}))[check].level == level


def test_a_file_that_is_no_certificate_and_one_that_is_no_ca(site, way, consortium, tmp_path):
    (tmp_path / "ca.crt").write_text("hello")
    assert look(way(site, ca=str(tmp_path / "ca.crt")))["credentials.ca"].level == "failed"
    server = consortium.folder / "server" / "server.crt"
    check = look(way(site, ca=str(server)))["credentials.ca"]
    assert check.level == "failed" and "CA" in check.cause
    assert look(way(site, ca=str(tmp_path / "none.crt")))["credentials.ca"].level == "failed"


@pytest.mark.parametrize(("left", "level"), [(5, "warning"), (-1, "failed"), (400, "passed")])
def test_a_ca_that_expires(site, way, tmp_path, monkeypatch, left, level):
    authority = make_authority(tmp_path / "authority", days=500)

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=500 - left)

    monkeypatch.setattr(certificates, "datetime", Later)
    assert look(way(site, ca=str(authority.certificate_path)))["credentials.ca"].level == level


def test_insecure_uses_none(site, way):
    assert [c.level for c in check_credentials(way(site, insecure=True))] == ["warning"]


def test_no_private_key_is_printed(site, consortium):
    secret = consortium.key("north").read_text().split("\n")[1]
    assert secret not in str(look(site))
