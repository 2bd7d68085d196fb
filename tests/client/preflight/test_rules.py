"""A policy that would let nothing out of these data is a failure before the first round, and its remedy works."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.preflight.rules import check_policy
from client.preflight.trial import expected_spec
from fed_diffmic.config.compose import compose
from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.config.site import PolicyConfig
from fed_diffmic.data.site import Examples, SiteData
from tests import toy

TINY = compose(None, ["model=tiny", "stages=tiny"])


def data_of(count: int, labels: int = 2, val: int = 12) -> SiteData:
    whole = toy.toy_site("north", 0)

    def part(n: int) -> Examples:
        rows = np.arange(n) % len(whole.train)
        return replace(
            whole.train,
            rows=whole.train.rows[rows],
            labels=np.arange(n) % labels,
            groups=np.array([f"p{k}" for k in range(n)], dtype=object),
            keys=np.arange(n),
        )

    return replace(whole, train=part(count), val=part(val), test=part(12))


def look(site, data, policy):
    config = replace(site, policy=policy)
    spec = expected_spec(config, data.classes, data.task, TINY.model, TINY.stages)
    return {check.name: check for check in check_policy(config, data, spec)}


NO_FLOORS = Floors(step_images=0, step_patients=0, update_images=0, update_patients=0, steps=0)


def test_too_few_images_for_the_policy_are_a_failure_and_a_smaller_count_mends_it(site):
    checks = look(site, data_of(5), PolicyConfig(min_count=10, floors=NO_FLOORS))
    check = checks["policy.data"]
    assert (check.level, check.exit_code) == ("failed", 3)
    assert "the policy will let nothing out: 5 training images, and policy.min_count is 10" in check.cause
    assert "Add images until 10 are for training, or agree on a smaller policy.min_count" in check.remedy
    assert look(site, data_of(10), PolicyConfig(min_count=10, floors=NO_FLOORS))["policy.data"].level == "passed"
    assert look(site, data_of(5), PolicyConfig(min_count=5, floors=NO_FLOORS))["policy.data"].level == "passed"


def test_a_floor_that_no_round_reaches_is_a_failure_with_its_name(site):
    floors = replace(NO_FLOORS, update_patients=30)
    check = look(site, data_of(20), PolicyConfig(floors=floors))["policy.data"]
    assert check.level == "failed" and "let nothing out" in check.cause
    assert "policy.floors.update_patients is 30" in check.cause and "guidance: update_patients: " in check.cause
    private = replace(site, privacy=replace(site.privacy, name="dp_sgd", stages=["guidance", "diffusion"]))
    assert look(private, data_of(20), PolicyConfig(floors=floors))["policy.data"].level == "passed"
    one = replace(site, privacy=replace(site.privacy, name="dp_sgd", stages=["guidance"]))
    assert "no update of diffusion" in look(one, data_of(20), PolicyConfig(floors=floors))["policy.data"].cause


def test_metrics_that_will_not_leave_and_a_single_class_are_said(site):
    checks = look(site, data_of(20, labels=1, val=4), PolicyConfig(min_count=10, floors=NO_FLOORS))
    assert (checks["policy.data"].level, checks["data.one-class"].level) == ("warning", "warning")
    assert "metrics over few images will not (val 4; policy.min_count is 10)" in checks["policy.data"].cause
    assert "data.one-class" not in look(site, data_of(20), PolicyConfig())


def test_a_policy_that_names_nothing_is_said(site):
    assert "every request will be refused" in look(site, data_of(40), PolicyConfig())["policy.names"].cause


@pytest.mark.parametrize("lines", [9])
def test_preflight_fails_on_a_small_table(site, lines, capsys):
    """What was tried as a newcomer: nine lines of one class, five to train on."""
    from client.preflight.run import Expected, preflight

    table = Path(site.dataset.root) / "manifest.csv"
    kept = [line for line in table.read_text().splitlines() if "malignant" not in line][:lines]
    table.write_text("\n".join(kept) + "\n")
    Path(site.site.folder).mkdir(mode=0o700, exist_ok=True)
    checks = preflight(site, Expected(TINY.model, TINY.stages), lambda check: None, ("data",))
    named = {check.name: check for check in checks}
    assert named["policy.data"].level == "failed" and named["data.one-class"].level == "warning"
