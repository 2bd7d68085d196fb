"""Timestamps of a log's head: by an authority made here, verified as any other's is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from fed_diffmic.cli import main
from fed_diffmic.exchange.audit import AuditLog
from fed_diffmic.provision.keys import load_private, make_site_key

OPENSSL = shutil.which("openssl")
pytestmark = pytest.mark.skipif(OPENSSL is None, reason="an authority is made with the program openssl")
CONFIG = """
[tsa]
default_tsa = tsa_config
[tsa_config]
serial = {folder}/serial
crypto_device = builtin
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha512
accuracy = secs:1
ess_cert_id_chain = no
[tsa_cert]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
"""


def openssl(*words: str) -> None:
    subprocess.run([str(OPENSSL), *words], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root and an authority under it."""
    folder = tmp_path_factory.mktemp("authority")
    (folder / "tsa.cnf").write_text(CONFIG.format(folder=folder))
    (folder / "serial").write_text("01\n")
    at = [str(folder / name) for name in ("root.key", "root.pem", "tsa.key", "tsa.csr", "tsa.pem", "tsa.cnf")]
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-keyout", at[0], "-out", at[1], "-days", "30", "-subj", "/CN=root")
    openssl("req", *new, "-keyout", at[2], "-out", at[3], "-subj", "/CN=tsa")
    signed = ("-CA", at[1], "-CAkey", at[0], "-CAcreateserial", "-days", "30", "-extfile", at[5], "-extensions")
    openssl("x509", "-req", "-in", at[3], "-out", at[4], *signed, "tsa_cert")
    return folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    make_site_key(tmp_path / "site.key")
    made = AuditLog(tmp_path / "audit.jsonl", load_private(tmp_path / "site.key"), owner="a")
    made.append("task", run="pilot")
    return made.path


def stamped(log: Path, authority: Path) -> Path:
    query, reply = log.with_suffix(".tsq"), log.with_suffix(".tsr")
    assert main(["audit", "stamp", str(log), "--out", str(query)]) == 0
    signer = ("-signer", str(authority / "tsa.pem"), "-inkey", str(authority / "tsa.key"))
    config = ("-config", str(authority / "tsa.cnf"), "-section", "tsa_config")
    openssl("ts", "-reply", "-queryfile", str(query), *signer, *config, "-out", str(reply))
    return reply


def verify(log: Path, token: Path, root: Path) -> int:
    key = str(log.parent / "site.key.pub")
    return main(["audit", "verify", str(log), "--key", key, "--token", str(token), "--token-ca", str(root)])


def test_a_head_is_stamped_and_the_log_goes_on(log: Path, authority: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = stamped(log, authority)
    AuditLog(log, load_private(log.parent / "site.key"), owner="a").append("task", run="pilot")
    assert verify(log, token, authority / "root.pem") == 0
    assert "timestamp: line 2 was there no later than " in capsys.readouterr().out


def test_a_log_that_was_written_anew_since_is_found(
    log: Path, authority: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = stamped(log, authority)
    log.unlink()
    AuditLog(log, load_private(log.parent / "site.key"), owner="a").append("task", run="pilot")
    assert verify(log, token, authority / "root.pem") == 4
    assert "a timestamp of no line of this log" in capsys.readouterr().err


def test_a_stamp_of_another_authority_or_of_none_is_refused(
    log: Path, authority: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token, other = stamped(log, authority), tmp_path / "other.pem"
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=other")
    openssl("req", "-x509", *new, "-keyout", str(tmp_path / "other.key"), "-out", str(other))
    assert verify(log, token, other) == 4
    assert "does not hold" in capsys.readouterr().err
    changed = bytearray(token.read_bytes())
    changed[-1] ^= 1
    token.write_bytes(changed)
    assert verify(log, token, authority / "root.pem") == 4
    token.write_bytes(b"no response")
    assert verify(log, token, authority / "root.pem") == 4
    assert "is not a response" in capsys.readouterr().err
    assert verify(log, token, tmp_path / "missing.pem") != 0
    assert main(["audit", "verify", str(log), "--key", str(log.parent / "site.key.pub"), "--token", str(token)]) == 2
