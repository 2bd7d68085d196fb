"""Which model to take: the default stays unless another is shown to be better, by its interval and not by its value."""

import pytest

from fed_diffmic.training.choice import choose_model


def gaps(table):
    """Paired differences by (first, second)."""
    return lambda first, second: dict(zip(("value", "low", "high"), table[first, second], strict=True))


@pytest.mark.parametrize(
    ("local", "mixture", "expected"),
    [
        ((0.03, -0.01, 0.07), (0.02, -0.01, 0.05), "federated"),
        ((0.03, 0.01, 0.05), (-0.01, -0.05, 0.03), "local"),
        ((0.03, 0.01, 0.05), (0.04, 0.01, 0.07), "mixture"),
        ((-0.09, -0.2, -0.01), (0.02, 0.01, 0.03), "mixture"),
        ((None, None, None), (None, None, None), "federated"),
    ],
)
def test_each_candidate_stands_against_the_choice_so_far(local, mixture, expected):
    table = {("local", "federated"): local, ("mixture", "federated"): mixture, ("mixture", "local"): mixture}
    found = choose_model(["federated", "local", "mixture"], gaps(table))
    assert found.model == expected
    assert [step.candidate for step in found.steps] == ["local", "mixture"]
    assert found.steps[1].against == ("local" if local[1] and local[1] > 0 else "federated")
    assert found.steps[0].worse == (local[2] is not None and local[2] < 0)


def test_nothing_to_choose_from():
    with pytest.raises(ValueError, match="no model"):
        choose_model([], gaps({}))
    assert choose_model(["federated"], gaps({})).model == "federated"
