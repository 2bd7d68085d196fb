"""Rules across rows, each against a brute-force twin."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fed_diffmic.data.checks import (
    almost_black,
    empty_classes,
    group_leak,
    institution_overlap,
    look_at,
    settle_duplicates,
)
from fed_diffmic.data.findings import Findings
from fed_diffmic.data.manifest import SPLITS, Manifest
from tests.data.published import codes, one


def manifest(label, group=None, split=None, institution=None, classes=("x", "y", "z")) -> Manifest:
    n = len(label)
    table = pd.DataFrame(
        {
            "image": [f"/d/anna{i}.png" for i in range(n)],
            "label": label,
            "group": group or [f"g{i}" for i in range(n)],
            "split": split or [""] * n,
            "institution": institution or [""] * n,
            "line": range(2, n + 2),
            "row": range(n),
        }
    )
    return Manifest(table, classes, "multiclass", "toy", "t.csv")


def settle(m, code, published=False):
    findings = Findings()
    return settle_duplicates(m, np.asarray(code, dtype=np.int64), published=published, findings=findings), findings


def test_equal_pixels_are_equal_codes():
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    stack = images[[0, 1, 0, 2, 1]]
    cache = SimpleNamespace(images=lambda rows: stack[rows.tolist()])
    assert look_at(manifest([0] * 5), cache)[0].tolist() == [0, 1, 0, 2, 1]


def test_copies_under_one_label_are_kept_in_one_group():
    m, findings = settle(manifest([0, 1, 0, 2]), [5, 1, 5, 2])
    assert m.table["group"].tolist() == ["g0", "g1", "g0", "g3"]
    assert one(findings, "duplicate-images").rows == (2, 4)
    assert codes(findings) == {"duplicate-images": "warning"}


def test_copies_under_two_labels_are_all_left_out():
    m, findings = settle(manifest([0, 1, 1, 2]), [3, 1, 3, 2])
    assert m.table["line"].tolist() == [3, 5]
    found = one(findings, "contradicting-labels")
    assert (found.severity, found.rows, found.count) == ("warning", (2, 4), 2)
    assert "anna" not in str(found)


@pytest.mark.parametrize(("published", "severity"), [(False, "error"), (True, "warning")])
def test_copies_on_both_sides_of_a_split(published, severity):
    _, findings = settle(manifest([0, 1, 0], split=["train", "train", "test"]), [3, 1, 3], published)
    assert one(findings, "duplicate-across-splits").severity == severity


def test_chains_of_copies_join_all_their_groups():
    m, _ = settle(manifest([0] * 5, group=["d", "c", "b", "a", "c"]), [1, 1, 2, 2, 2])
    assert m.table["group"].tolist() == ["a"] * 5


rows = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 4), st.sampled_from(["", *SPLITS])),
    min_size=1,
    max_size=14,
)


@settings(max_examples=100, deadline=None)
@given(rows)
def test_settled_duplicates_against_brute_force(data):
    code, label, group, split = map(list, zip(*data, strict=True))
    group = [f"g{g}" for g in group]
    m, findings = settle(manifest(label, group, split), np.unique(code, return_inverse=True)[1])
    labels_of = {c: {lab for c2, lab in zip(code, label, strict=True) if c2 == c} for c in code}
    kept = [i for i, c in enumerate(code) if len(labels_of[c]) == 1]
    assert m.table["line"].tolist() == [i + 2 for i in kept]
    closure = {g: {g} for g in group}
    for _ in group:
        for i in kept:
            for j in kept:
                if code[i] == code[j]:
                    joined = closure[group[i]] | closure[group[j]]
                    for g in joined:
                        closure[g] = closure[g] | joined
    assert m.table["group"].tolist() == [min(closure[group[i]]) for i in kept]
    across = any(code[i] == code[j] and split[i] != split[j] for i in kept for j in kept)
    assert ("duplicate-across-splits" in codes(findings)) == across


@settings(max_examples=100, deadline=None)
@given(rows, st.booleans())
def test_group_leak_against_brute_force(data, published):
    _, _, group, split = (np.array(column, dtype=object) for column in zip(*data, strict=True))
    group = np.array([f"g{g}" for g in group], dtype=object)
    findings = Findings()
    lines = np.arange(2, len(group) + 2)
    count = group_leak(group, split, lines, table="t", unit="group", published=published, findings=findings)
    seen = {g: {s for g2, s in zip(group, split, strict=True) if g2 == g and s} for g in group}
    leaking = {g for g, splits in seen.items() if len(splits) > 1}
    assert count == len(leaking)
    if leaking:
        item = next(iter(findings))
        assert item.rows == tuple(i + 2 for i, g in enumerate(group) if g in leaking and split[i])
        assert item.severity == ("warning" if published else "error")
    else:
        assert len(findings) == 0


def test_empty_classes_and_groups_at_several_institutions():
    findings = Findings()
    m = manifest([0, 0, 1], group=["p", "p", "q"], institution=["A", "B", "B"])
    empty_classes(m, findings)
    institution_overlap(m, findings)
    assert "no image of: z" in one(findings, "empty-class").message
    assert one(findings, "group-across-institutions").count == 1
    assert not findings.errors


def test_images_that_use_a_sixteenth_of_the_range_are_said():
    brightest = [16, 255, 0, 17, 200]
    stack = torch.zeros(5, 3, 4, 4, dtype=torch.uint8)
    stack[:, 1, 2, 3] = torch.tensor(brightest, dtype=torch.uint8)
    cache = SimpleNamespace(images=lambda rows: stack[rows.tolist()])
    m = manifest([0] * 5)
    found = look_at(m, cache)[1]
    assert found.tolist() == brightest
    findings = Findings()
    almost_black(m, found, findings)
    warned = one(findings, "almost-black")
    assert (warned.severity, warned.rows, warned.count) == ("warning", (2, 4), 2)
    assert "nothing brighter than 16 of 255" in warned.message
    assert "anna" not in str(warned)
    almost_black(m, np.full(5, 17, np.uint8), again := Findings())
    assert not list(again)
