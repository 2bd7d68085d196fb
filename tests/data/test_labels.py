"""Label names to indices and vectors; the order of classes; the split's words."""

import numpy as np
import pytest

from fed_diffmic.config.simulation import DatasetConfig
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.labels import (
    class_indices,
    grade_names,
    label_sets,
    natural_order,
    published_classes,
    split_names,
    task_of,
)
from fed_diffmic.errors import ConfigError
from tests.data.published import one


def run(function, values, *args, **kwargs):
    findings = Findings()
    array = np.array(values, dtype=object)
    place = {"lines": np.arange(2, len(values) + 2), "table": "t.csv", "findings": findings}
    return function(array, *args, **place, **kwargs), findings


def test_natural_order():
    assert natural_order(["10", "2", "0"]) == ["0", "2", "10"]
    assert natural_order(["10", "2", "b"]) == ["10", "2", "b"]
    assert natural_order([]) == []


def test_unknown_labels_with_count_rows_and_a_near_name():
    result, findings = run(
        class_indices, ["mel", "nv", "Melanoma Anna", "melanom", "nv"], ("mel", "nv", "melanoma"), field="dx"
    )
    assert result.tolist() == [0, 1, -1, -1, 1]
    found = one(findings, "unknown-label")
    assert found.rows == (4, 5)
    assert "'melanom' may be meant as 'melanoma'" in str(found)
    assert "Anna" not in str(found)


def test_label_sets():
    values = ["A|B", "", "No Finding", "B | B", "C", "D|A", "No Finding|A", "|"]
    (bits, usable), findings = run(label_sets, values, ("A", "B"), field="labels", known=("C",))
    assert usable.tolist() == [True, True, True, True, True, False, False, True]
    assert bits[usable].tolist() == [[1, 1], [0, 0], [0, 0], [0, 1], [0, 0], [0, 0]]
    assert one(findings, "unknown-label").rows == (7,)
    assert one(findings, "contradicting-labels").rows == (8,)


def test_no_finding_as_a_class_of_its_own():
    (bits, usable), findings = run(label_sets, ["No Finding", "A", "No Finding|A"], ("A", "No Finding"), field="labels")
    assert bits[:2].tolist() == [[0, 1], [1, 0]]
    assert usable.tolist() == [True, True, False]
    assert one(findings, "contradicting-labels").severity == "error"


def test_split_words():
    words, findings = run(split_names, ["Train", "validation", "TEST", "holdout", ""])
    assert words.tolist() == ["train", "val", "test", "", ""]
    assert one(findings, "unknown-split").rows == (5,)
    assert one(findings, "empty-value").rows == (6,)
    words, findings = run(split_names, ["", ""])
    assert words.tolist() == ["", ""]
    assert len(findings) == 0


def test_grades_may_be_renamed_but_not_reordered():
    assert grade_names(DatasetConfig(), 3) == ("0", "1", "2")
    assert grade_names(DatasetConfig(classes=["none", "mild", "severe"]), 3) == ("none", "mild", "severe")
    for wrong in (["1", "0", "2"], ["a", "b"], ["a", "a", "b"], ["0", "x", "y", "z"]):
        with pytest.raises(ConfigError, match=r"dataset\.classes"):
            grade_names(DatasetConfig(classes=wrong), 3)


def test_published_classes_and_tasks():
    assert published_classes(DatasetConfig(classes=["b", "a"]), ("a", "b", "c")) == ("b", "a")
    with pytest.raises(ConfigError, match="different names out of a, b"):
        published_classes(DatasetConfig(classes=["a", "q"]), ("a", "b"))
    assert task_of(DatasetConfig(), "ordinal", ("ordinal", "multiclass")) == "ordinal"
    with pytest.raises(ConfigError, match=r"dataset\.task"):
        task_of(DatasetConfig(task="multilabel"), "ordinal", ("ordinal",))


@pytest.mark.parametrize("trained", [False, True])
def test_only_a_model_that_is_not_trained_yet_can_be_given_other_classes(trained):
    findings = Findings(trained=trained)
    values, lines = np.array(["a", "x"], dtype=object), np.array([2, 3])
    class_indices(values, ("a", "b"), lines=lines, table="t.csv", field="label", findings=findings)
    [found] = findings
    assert ("dataset.classes" in found.remedy) == (not trained) and found.remedy.startswith("Correct these labels")
