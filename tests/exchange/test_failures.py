"""Failures become codes; texts of exceptions never travel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fed_diffmic.errors import ConfigError, DataError, MachineError, ModelFileError
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.failures import FAILURES, SiteError, failure_code, failure_sentence


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("scan_of_DOE_JANE.png is torn"), failures.NO_DATA),
        (ModelFileError("x"), failures.BAD_MODEL),
        (ConfigError("a.b", 1, "2"), failures.SETTINGS),
        (ConfigError("privacy.name", "dp_sgd", "networks without live batch norm"), failures.PRIVATE_NETWORK),
        (ConfigError("privacy.delta", 1, "2"), failures.PRIVATE_SETTINGS),
        (ConfigError("model.regions", 1, "2"), failures.MODEL_SETTINGS),
        (MachineError("disk"), failures.MACHINE),
        (OSError("/data/DOE_JANE.png"), failures.MACHINE),
        (MemoryError(), failures.MACHINE),
        (SiteError(failures.NO_STATE), failures.NO_STATE),
        (KeyError("DOE_JANE"), failures.UNEXPECTED),
    ],
)
def test_every_exception_has_a_code_and_a_fixed_sentence(error: Exception, code: int) -> None:
    assert failure_code(error) == code
    assert "DOE" not in FAILURES[code]


def test_codes_that_are_not_ours_mean_that_the_node_failed() -> None:
    assert failure_sentence(5) == FAILURES[failures.NODE_FAILED]
    assert failure_sentence(10**9) == FAILURES[failures.NODE_FAILED]


def test_every_code_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = {int(code): sentence for code, sentence in re.findall(r"^\| (\d{4}) \| (.*) \|$", text, re.MULTILINE)}
    assert rows == FAILURES
