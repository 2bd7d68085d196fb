"""The manifest: what it accepts, refuses, counts, saves."""

import json
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fed_diffmic.data.manifest import OWN_GROUP, Manifest, Rows
from fed_diffmic.errors import DataError


def frame(**columns) -> pd.DataFrame:
    base = {"image": ["/d/anna.png", "/d/b.png", "/d/c.png"], "label": [0, 1, 1], "group": ["p1", "p1", "p2"]}
    return pd.DataFrame(base | columns)


def build(task="multiclass", classes=("x", "y"), **columns) -> Manifest:
    return Manifest(frame(**columns), classes, task, "toy", "manifest.csv")


def test_missing_columns_are_filled_and_types_are_fixed():
    t = build().table
    assert t["row"].tolist() == [-1, -1, -1]
    assert t["key"].tolist() == t["line"].tolist() == [0, 0, 0]
    assert t["split"].tolist() == t["institution"].tolist() == ["", "", ""]
    assert {str(t[c].dtype) for c in ("row", "key", "line", "label")} == {"int64"}


def test_the_callers_table_is_neither_changed_nor_shared():
    given_table = frame()
    manifest = Manifest(given_table, ("x", "y"), "multiclass", "toy")
    given_table.loc[0, "label"] = 9
    assert "row" not in given_table.columns
    assert manifest.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": [0, 2, 1]}, "1 row(s) of 'label'"),
        ({"label": [0, -1, -3]}, "2 row(s) of 'label'"),
        ({"label": [0, 0.5, None]}, "2 row(s) of 'label'"),
        ({"group": ["p", "", "q"]}, "1 row(s) of 'group' are empty"),
        ({"group": ["p", 7, "q"]}, "1 row(s) of 'group' are not text"),
        ({"image": ["", "", "/d/c"]}, "2 row(s) of 'image' are empty"),
        ({"split": ["train", "dev", ""]}, "1 row(s) of 'split'"),
        ({"institution": ["a", None, "b"]}, "1 row(s) of 'institution' are not text"),
    ],
)
def test_what_a_column_may_not_hold_is_counted_without_names(columns, said):
    with pytest.raises(DataError) as caught:
        build(**columns)
    assert said in str(caught.value)
    assert "anna" not in str(caught.value)


def test_every_problem_is_named_at_once():
    with pytest.raises(DataError) as caught:
        build(task="guess", classes=("x", "x"), split=["a", "b", "c"], group=["", "p", "p"])
    text = str(caught.value)
    assert "task is not" in text
    assert "not unique" in text
    assert "3 row(s) of 'split'" in text
    assert "1 row(s) of 'group'" in text


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="missing: label"):
        Manifest(frame().drop(columns="label"), ("x", "y"), "multiclass", "toy")


def test_multilabel_vectors():
    labels = pd.Series([(1, 0, 1), (0, 0, 0), (0, 0, 1)], dtype=object)
    manifest = build("multilabel", ("x", "y", "z"), label=labels)
    assert manifest.labels.dtype == np.float32
    assert manifest.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    assert manifest.class_counts().tolist() == [1, 0, 2]
    for wrong in [(1, 0), (1, 0, 2), 3]:
        bad = pd.Series([(1, 0, 1), wrong, (0, 0, 1)], dtype=object)
        with pytest.raises(DataError, match="1 row"):
            build("multilabel", ("x", "y", "z"), label=bad)


def test_class_counts_count_absent_classes_as_zero():
    assert build(classes=("x", "y", "never")).class_counts().tolist() == [1, 2, 0]


def test_subset_by_mask_and_by_position():
    manifest = build()
    assert manifest.subset(np.array([False, True, True])).table["image"].tolist() == ["/d/b.png", "/d/c.png"]
    assert manifest.subset([2, 0]).table["image"].tolist() == ["/d/c.png", "/d/anna.png"]
    assert len(manifest.subset(np.array([], dtype=np.int64))) == 0
    with pytest.raises(ValueError, match="mask"):
        manifest.subset(np.array([True]))


def test_the_digest_follows_content_not_folders():
    one = build(key=[11, 12, 13])
    moved = build(key=[11, 12, 13], image=["/e/1.png", "/e/2.png", "/e/3.png"], row=[5, 6, 7])
    assert one.digest() == moved.digest()
    others = [
        build(key=[11, 12, 14]),
        build(key=[11, 12, 13], label=[1, 1, 1]),
        build(key=[11, 12, 13], split=["val", "", ""]),
    ]
    assert len({one.digest(), *(other.digest() for other in others)}) == 4


def test_an_unknown_group_is_named_after_the_image_below_the_root():
    rows = Rows(
        image=np.array(["/d/s/a.png", "/d/b.png"], dtype=object),
        label=np.array([0, 1]),
        group=np.array(["", "p7"], dtype=object),
        line=np.array([2, 3]),
    )
    manifest = Manifest.from_rows(
        rows,
        name="toy",
        source="t.csv",
        root=Path("/d"),
        classes=("x", "y"),
        task="multiclass",
    )
    assert manifest.table["group"].tolist() == [f"{OWN_GROUP}s/a.png", "p7"]


text = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            text.filter(bool),
            st.lists(st.integers(0, 1), min_size=3, max_size=3),
            text.filter(bool),
            text,
            st.sampled_from(["", "train", "val", "test"]),
            st.integers(0, 2**63 - 1),
        ),
        max_size=6,
    ),
    multilabel=st.booleans(),
)
def test_what_is_saved_is_what_is_loaded(tmp_path, rows, multilabel):
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
    labels = [tuple(v) for v in columns[1]] if multilabel else [sum(v) for v in columns[1]]
    table = pd.DataFrame(
        {"image": columns[0], "group": columns[2], "institution": columns[3], "split": columns[4], "key": columns[5]}
    )
    table["label"] = pd.Series(labels, dtype=object)
    manifest = (
        Manifest(table, ("x", "ü,|", '"z"', "w"), "multiclass", "toy", "t.csv")
        if not multilabel
        else Manifest(table, ("x", "ü,|", '"z"'), "multilabel", "toy", "t.csv")
    )
    path = manifest.save(tmp_path / "m.csv")
    back = Manifest.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (back.classes, back.task, back.name, back.source) == (manifest.classes, manifest.task, "toy", "t.csv")
    assert back.digest() == manifest.digest()
    pd.testing.assert_frame_equal(back.table, manifest.table, check_dtype=bool(rows))


def test_a_changed_torn_or_foreign_file_is_refused(tmp_path):
    path = build().save(tmp_path / "m.csv")
    content = path.read_text()
    for broken in (
        content.replace("p2", "p1"),
        content[:-9],
        "image,label\na,b\n",
        "",
        "{}\n",
        json.dumps({"format": 1}),
    ):
        path.write_text(broken)
        with pytest.raises(DataError) as caught:
            Manifest.load(path)
        assert "anna" not in str(caught.value)
    with pytest.raises(DataError, match="FileNotFoundError"):
        Manifest.load(tmp_path / "none.csv")
