"""A site's half of the counts: whose images are behind each of them, for the site itself to judge by."""

import numpy as np
import pytest

from fed_diffmic.training.calibration import decide, uncalibrated
from fed_diffmic.training.few import OWNERS, told, without_owners
from fed_diffmic.training.sureness import IMAGES, count_names, counts_from, fit, fit_sum, site_counts, unsure_of
from tests import toy


def counted(task, labels, groups, scores):
    spec = toy.toy_spec()
    spec = toy.replace(spec, task=task)
    fitted = uncalibrated(np.full(3, 1 / 3), task)
    p, _ = unsure_of(scores, {}, fitted)
    found = site_counts(scores, {"spread": np.linspace(0, 1, len(labels))}, labels, groups, fitted, spec)
    return found, decide(p, fitted, spec.stages.decision)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_each_state_and_kind_has_its_patients_under_the_names_of_its_counts(task):
    rng = np.random.default_rng(0)
    shape = (60, 2, 3) if task == "multilabel" else (60, 3)
    scores = rng.normal(size=shape)
    labels = rng.integers(0, 2, (60, 3)) if task == "multilabel" else rng.integers(0, 3, 60)
    groups = np.array([f"p{k}" for k in rng.integers(0, 25, 60)], dtype=object)
    found, decided = counted(task, labels, groups, scores)
    heads = {name.rpartition("/")[0] for name in without_owners(found) if name.count("/") > 1}
    assert {name.removeprefix(OWNERS) for name in found if name.startswith(OWNERS)} == heads
    states = labels if task == "multilabel" else labels[:, None]
    for head in (head for head in heads if head.startswith("sets/")):
        question, state = map(int, head.split("/")[2:])
        owners = {group for group, own in zip(groups, states[:, question], strict=True) if own == state}
        assert found[OWNERS + head] == len(owners)
    bad = (decided != labels).any(axis=1) if task == "multilabel" else decided != labels
    for kind in (0, 1):
        assert found[f"{OWNERS}unsure/spread/{kind}"] == len(set(groups[bad == kind]))
    assert counts_from(without_owners(found), task, 3) is not None
    assert counts_from(found, task, 3) is None, "a site's numbers of patients are not taken from it"


def test_a_class_of_one_patient_is_hidden_by_what_the_site_counts():
    labels = np.array([0] * 40 + [1] * 12 + [2] * 20)
    groups = np.array([*range(40), *([99] * 12), *range(200, 220)])
    found, _ = counted("multiclass", labels, groups, np.random.default_rng(1).normal(size=(72, 3)))
    left = told(found, 10, 5)
    assert not any(name.startswith(("sets/lac/0/1/", "sets/aps/0/1/", OWNERS)) for name in left)
    assert sum(n for name, n in left.items() if name.startswith("sets/lac/")) == 72


def three(task):
    """What three sites count, and the totals that a sum over them gives: every number, zeros too."""
    sites = {}
    for seed, name in enumerate("abc"):
        rng = np.random.default_rng(seed)
        n = 30 + 10 * seed
        labels = rng.integers(0, 2, (n, 3)) if task == "multilabel" else rng.integers(0, 3, n)
        scores = rng.normal(size=(n, 2, 3) if task == "multilabel" else (n, 3))
        sites[name] = without_owners(counted(task, labels, rng.integers(0, 20, n).astype(str), scores)[0])
    names = (IMAGES, *count_names(task, 3))
    assert all(set(one) <= set(names) for one in sites.values())
    return sites, {name: sum(one.get(name, 0.0) for one in sites.values()) for name in names}


@pytest.mark.parametrize("task", ["multiclass", "ordinal", "multilabel"])
def test_totals_give_what_the_counts_of_each_site_give(task):
    sites, totals = three(task)
    each = {name: counts_from(one, task, 3) for name, one in sites.items()}
    assert fit_sum(totals, ["c", "a", "b"], ["d"], task, 3) == fit(each, ["d"], task, 3, guarded=False)


@pytest.mark.parametrize(
    ("head", "change"),
    [
        (IMAGES, 20000),
        ("sets/squares", 20000),
        ("sets/lac/", -1),
        ("sets/aps/", 1),
        ("unsure/entropy/", 1),
        ("unsure/entropy/0/", -1),
        ("unsure/spread/1/", -1),
    ],
)
def test_totals_that_no_sites_can_have_counted_are_refused(head, change):
    """One image too many, or one that a site did not tell: then the measure is over some of the sites alone."""
    _, totals = three("multiclass")
    name = next(name for name, total in totals.items() if name.startswith(head) and total)
    with pytest.raises(ValueError, match="do not add up"):
        fit_sum({**totals, name: totals[name] + change}, ["a", "b", "c"], [], "multiclass", 3)
