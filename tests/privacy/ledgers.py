"""What the tests of the privacy ledger start from."""

import shutil

import pytest

from fed_diffmic.config.privacy import PrivacyConfig
from fed_diffmic.errors import LedgerError
from fed_diffmic.privacy.accounting import Mechanism
from fed_diffmic.privacy.ledger import Ledger
from fed_diffmic.privacy.ledger_lines import head_text
from tests.privacy.test_units import units

PRIVACY = PrivacyConfig(name="dp_sgd", unit="patient", budget=8.0, delta=1e-5)
STEP = Mechanism(0.1, 2.0, 5)
PLACE = {"run": "r1", "arm": "federated", "stage": "guidance", "round_index": 1}
A, B, BOTH = units((1, "a"), (2, "a")), units((3, "b")), units((1, "a"), (3, "b"))


def spent_something(site, key):
    """A ledger with two reservations; its head, and the files as they were after the first."""
    with Ledger(site, PRIVACY, key) as ledger:
        ledger.reserve(A, STEP, **PLACE)
        shutil.copytree(site, site.parent / "older")
        ledger.reserve(A, STEP, **PLACE)
        return head_text(ledger.head())


def refused(site, key, match, echoed=""):
    with pytest.raises(LedgerError, match=match) as caught:
        Ledger(site, PRIVACY, key, echoed=echoed)
    return caught.value
