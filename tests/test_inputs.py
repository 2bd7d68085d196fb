"""Files that a command is given to read."""

from pathlib import Path

import pytest

from fed_diffmic.errors import UsageError
from fed_diffmic.inputs import check_file


def test_a_file_that_is_not_there_is_refused_by_its_names(tmp_path: Path) -> None:
    there = tmp_path / "table.csv"
    there.touch()
    check_file("--manifest", there)
    check_file("--manifest", str(there))
    for path in (tmp_path, tmp_path / "none.csv", there / "below"):
        with pytest.raises(UsageError, match="there is no such file") as caught:
            check_file("--manifest", path, "Name one.")
        assert str(path) in str(caught.value) and caught.value.remedy == "Name one."
