from fed_diffmic.privacy.statement import last_claims, statement

CLAIM = {
    "unit": "patient",
    "delta": 1e-5,
    "epsilon_run": 2.5,
    "epsilon_total": 3.25,
    "budget": 8.0,
    "guarantee": True,
    "outside": ["units"],
}


def test_the_last_claim_of_each_site_counts():
    history = [{"privacy": {"a": {**CLAIM, "epsilon_run": 1.0}, "b": CLAIM}}, {}, {"privacy": {"a": CLAIM}}]
    assert last_claims(history) == {"a": CLAIM, "b": CLAIM}


def test_nobody_claims_nothing():
    assert statement({}, ["a"]) == []


def test_it_says_epsilon_unit_what_is_not_covered_and_who_is_silent():
    void = {**CLAIM, "guarantee": False}
    text = "\n".join(statement({"a": CLAIM, "b": void}, ["a", "b", "c"]))
    assert "a: (2.500, 1e-05)-differential privacy for this run and epsilon 3.250 of 8" in text
    assert "one patient more or less" in text and "a, not covered: the number of its training units" in text
    assert "b: no guarantee holds" in text and "c: claims nothing" in text
