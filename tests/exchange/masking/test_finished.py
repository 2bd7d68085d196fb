"""What sums of finished stages said is known to a coordinator that comes back, for the very same task alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from fed_diffmic.errors import ModelFileError
from fed_diffmic.exchange.masking.kept import FinishedSums, Where
from fed_diffmic.files import write_json

CALIBRATE: Where = ("run", "federated", "guidance", "calibrate", 0)
CONFORM: Where = ("run", "federated", "guidance", "conform", 0)


def test_what_a_sum_said_is_kept_to_the_bit_for_its_task(tmp_path: Path) -> None:
    said = {"num_examples": 24.0, "nll/0/0": 0.1 + 0.2}
    FinishedSums(tmp_path).add(CALIBRATE, "one", said, ["a", "b", "c"])
    FinishedSums(tmp_path).add(CONFORM, "one", {"num_examples": 24.0}, ["a", "b", "c"])
    again = FinishedSums(tmp_path)
    assert again.get(CALIBRATE, "one") == (said, ("a", "b", "c"))
    assert again.get(CALIBRATE, "two") is None and again.get((*CALIBRATE[:3], "test", 0), "one") is None
    assert (tmp_path / "finished.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("value", [{}, [{"where": []}], ["one"]])
def test_a_file_that_is_none_of_it_is_named(tmp_path: Path, value: object) -> None:
    write_json(tmp_path / "finished.json", value)
    with pytest.raises(ModelFileError, match="finished stages"):
        FinishedSums(tmp_path).get(CALIBRATE, "one")
