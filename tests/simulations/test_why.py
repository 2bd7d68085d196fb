"""A round that failed says what the virtual sites' own logs say, and which folder is full."""

import errno
import shutil
import time

import pytest

from client.site import log_failure
from fed_diffmic.errors import ConfigError, MachineError, RoundError
from fed_diffmic.exchange.failures import MACHINE, PRIVATE_NETWORK
from simulations.why import explained, reasons

FAILED = RoundError("round 1 of guidance: 0 of 2 sites replied well", "Look there.")


def full(folder):
    return MachineError(f"cannot write x in {folder}: No space left on device")


def test_a_full_disk_is_the_machines_and_names_the_folder(tmp_path):
    def rounds():
        for name in ("site-1", "site-2"):
            log_failure(tmp_path / "sites" / name, "train", MACHINE, full("/vault/bases"))
        raise FAILED

    with pytest.raises(MachineError) as caught, reasons(tmp_path):
        rounds()
    assert caught.value.exit_code == 6
    assert "site-1, site-2: cannot write x in /vault/bases: No space left on device" in caught.value.cause
    assert "round 1 of guidance" in caught.value.cause and "--resume" in caught.value.remedy


def test_a_disk_too_full_for_a_log_is_noticed(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("simulations.why.shutil.disk_usage", lambda _: usage._replace(free=10))
    found = explained(FAILED, tmp_path, time.time())
    assert isinstance(found, MachineError) and f"{tmp_path}: no space left there" in found.cause


def test_which_setting_and_whose_is_said(tmp_path):
    began = time.time()
    error = ConfigError("privacy.name", "dp_sgd", "networks without live batch norm")
    log_failure(tmp_path / "sites" / "South", "train", PRIVATE_NETWORK, error)
    found = explained(FAILED, tmp_path, began)
    assert type(found) is RoundError and found.exit_code == 5
    assert "South: privacy.name=dp_sgd is not allowed; allowed: networks without live batch norm" in found.cause


def test_what_is_not_known_or_of_an_earlier_process_is_not_said(tmp_path):
    log_failure(tmp_path / "sites" / "a", "train", MACHINE, full("/old"))
    assert explained(FAILED, tmp_path, time.time() + 1) is FAILED
    (tmp_path / "sites" / "a" / "site.log").write_text("torn {")
    assert explained(FAILED, tmp_path, 0.0) is FAILED
    log_failure(tmp_path / "sites" / "a", "train", MACHINE, OSError(errno.ENOSPC, "No space left on device", "DOE.png"))
    assert "DOE" not in str(explained(FAILED, tmp_path, 0.0))
