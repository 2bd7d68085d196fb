"""Columns of a table as subgroups."""

import numpy as np
import pytest

from fed_diffmic.data.dicom.look import _age_band
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.subgroups import subgroup_texts
from fed_diffmic.data.tables import Table


def read(columns, wanted):
    arrays = {name: np.array(values, dtype=object) for name, values in columns.items()}
    n = len(next(iter(arrays.values())))
    findings = Findings(None)
    return subgroup_texts(Table("t.csv", arrays, np.arange(n) + 2, tuple(arrays)), wanted, findings).tolist(), findings


def test_values_ages_and_what_is_not_known():
    columns = {"sex": ["f", " m ", "", "a|b=c/d"], "age_years": ["19.5", "80", "x", "-1"]}
    texts, findings = read(columns, ["sex", "age_years"])
    assert texts == [
        "sex=f|age_years=0 to 19",
        "sex=m|age_years=80 or more",
        "sex=unknown|age_years=unknown",
        "sex=a_b_c_d|age_years=unknown",
    ]
    assert not findings.errors and read(columns, [])[0] == ["", "", "", ""]
    assert read({"age": ["20", "39", "40", "79"]}, ["age"])[0] == ["age=20 to 39"] * 2 + [
        "age=40 to 59",
        "age=60 to 79",
    ]


def test_ages_as_our_own_export_and_dicom_write_them():
    written = ["40-49", "0-9", "90+", "80 or more", "60 to 79", "020-029", "045Y", "011M", "003W"]
    texts, findings = read({"age_band": written}, ["age_band"])
    bands = [
        "40 to 59",
        "0 to 19",
        "80 or more",
        "80 or more",
        "60 to 79",
        "20 to 39",
        "40 to 59",
        "0 to 19",
        "0 to 19",
    ]
    assert texts == [f"age_band={band}" for band in bands] and not list(findings)


def test_ages_that_cannot_be_read_or_lie_in_two_bands_are_said():
    texts, findings = read({"age": ["35-44", "65+", "49-40", "old", "", "40-60", "40"]}, ["age"])
    assert texts == ["age=unknown"] * 6 + ["age=40 to 59"]
    (said,) = findings
    assert (said.code, said.severity, said.count, said.rows) == ("age-not-read", "warning", 5, (2, 3, 4, 5, 7))
    assert "old" not in str(said)


def test_every_age_band_of_an_export_is_read():
    """The bands of :mod:`fed_diffmic.data.dicom.look`, which a hospital's own table then holds."""
    bands = sorted({_age_band(f"{years:03d}Y") for years in range(120)})
    texts, findings = read({"age_band": bands}, ["age_band"])
    assert len(bands) == 10 and not any("unknown" in text for text in texts) and not list(findings)


@pytest.mark.parametrize("columns", [{"x": ["1"]}, {"name": [f"patient {n}" for n in range(21)]}])
def test_a_column_that_is_not_there_or_holds_names_is_an_error_that_tells_no_value(columns):
    texts, findings = read(columns, ["name"])
    (found,) = findings.errors
    assert found.code == "no-subgroups" and "patient" not in str(found) and set(texts) == {""}
