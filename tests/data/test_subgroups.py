"""Columns of a table as subgroups."""

import numpy as np
import pytest

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


@pytest.mark.parametrize("columns", [{"x": ["1"]}, {"name": [f"patient {n}" for n in range(21)]}])
def test_a_column_that_is_not_there_or_holds_names_is_an_error_that_tells_no_value(columns):
    texts, findings = read(columns, ["name"])
    (found,) = findings.errors
    assert found.code == "no-subgroups" and "patient" not in str(found) and set(texts) == {""}
