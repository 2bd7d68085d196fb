"""What the calibration is fitted on: whose parts, which weights, and what the sites' sums add up to."""

import numpy as np
import pytest

from fed_diffmic.training import calibration, stages
from server.exchange import MetricsAnswer, Outcome
from server.federation import Federation
from server.fitting import calibrate, calibration_table, combined
from server.hooks import Hooks
from server.run_state import RunState
from server.terms import RunTerms
from tests.toy import Events, ToyNet, toy_spec

PRIOR = np.array([0.5, 0.3, 0.2])
SHAPE = calibration.grid("multiclass").shape


def table_of(best, images):
    """A site whose images are told best at the point ``best``: one nat an image there, two elsewhere."""
    table = np.full(SHAPE, 2.0 * images)
    table[best] = images
    return {f"nll/{i}/{j}": float(v) for (i, j), v in np.ndenumerate(table)} | {"num_examples": float(images)}


class Members:
    """Sites that say what the test says, and remember what they were asked."""

    def __init__(self, metrics):
        self.metrics, self.hooks, self.asked = metrics, Hooks(), []

    def everyone(self):
        return set(self.metrics)

    def evaluate(self, request):
        self.asked.append(request)
        return MetricsAnswer(self.metrics, Outcome(bytes_sent=70))


@pytest.fixture
def state(monkeypatch):
    for name in ("build_plain", "build_guidance"):
        monkeypatch.setattr(stages, name, lambda *_: ToyNet())
    whole = stages.full_state(stages.build_module(toy_spec(), "plain"))
    personal = {"plain": {"a": "own-a", "b": "own-b"}, "guidance": {"a": "other"}}
    return RunState(settings={}, results={"plain": whole}, personal=personal, bytes_sent=5)


def fit(metrics, state, prior=PRIOR):
    members, events = Members(metrics), Events([])
    run = Federation(members, toy_spec(), state, None, events, RunTerms(["plain"], deadline_s=60.0), prior)
    return calibrate(run, "plain"), members, events


def test_the_finished_stages_own_parts_and_weights_are_asked_for_sums(state):
    _, members, _ = fit({"a": table_of((3, 1), 10), "b": table_of((3, 1), 30)}, state)
    (asked,) = members.asked
    task, weights = asked.task, asked.tensors
    assert asked.site_states == {"a": "own-a", "b": "own-b"}, "a site is calibrated with the model that it uses"
    assert task.stage == "plain" and asked.sums and asked.round_index == 0
    assert asked.prior == PRIOR.tolist()
    kinds = stages.exchanged(stages.build_module(toy_spec(), "plain"))
    assert set(weights) == set(kinds) and set(task.frozen) == set(state.results["plain"]) - set(kinds)
    assert all(np.array_equal(weights[name], state.results["plain"][name]) for name in weights)
    assert state.bytes_sent == 75


def test_the_point_with_the_least_sum_over_all_images_is_taken(state):
    """Thirty images say more than ten; the mean is of all forty."""
    fitted, _, events = fit({"a": table_of((2, 0), 10), "b": table_of((5, 1), 30)}, state)
    grid = calibration.grid("multiclass")
    assert (fitted.scale, fitted.prior_weight) == (grid.scales[5], grid.columns[1][1])
    assert fitted.n == 40 and fitted.nll == pytest.approx((30 * 1 + 10 * 2) / 40)
    assert fitted.prior == tuple(PRIOR)
    (said,) = events.of("calibrated")
    assert (said["images"], said["nll"], said["scale"]) == (40, fitted.nll, fitted.scale)


def test_a_site_that_sends_some_cells_only_is_refused_and_the_others_decide(state):
    torn = table_of((2, 0), 100)
    del torn["nll/0/0"]
    fitted, _, events = fit({"a": torn, "b": table_of((5, 1), 30), "c": {"num_examples": 0.0}}, state)
    assert fitted.scale == calibration.grid("multiclass").scales[5] and fitted.n == 30
    assert [(e["site"], e["code"]) for e in events.of("site_refused")] == [("a", "metrics")]


def test_nobodys_sums_are_no_calibration(state):
    fitted, _, _ = fit({"a": {}, "b": {"num_examples": 0.0}}, state)
    assert fitted.n == 0 and fitted.nll is None


def test_cells_stand_where_their_names_say():
    metrics = {f"nll/{i}/{j}": 10.0 * i + j for i in range(3) for j in range(2)} | {"num_examples": 4.0}
    assert calibration_table(metrics, (3, 2)).tolist() == [[0, 1], [10, 11], [20, 21]]
    assert calibration_table({"num_examples": 0.0}, (3, 2)).tolist() == [[0, 0]] * 3
    assert calibration_table(metrics, (4, 2)) is None


def test_with_a_guard_no_site_alone_is_believed_and_none_decides_alone():
    tables = {"a": np.array([[4.0, 8.0]]), "b": np.array([[8.0, 2.0]]), "c": np.array([[8.0, 2.0]])}
    images = {"a": 4, "b": 2, "c": 2}
    total, count = combined({"a": tables["a"]}, images, (1, 2), 0.5, guarded=True)
    assert total.tolist() == [[0, 0]] and count == 0
    two = {name: tables[name] for name in "ab"}
    total, count = combined(two, images, (1, 2), 1.0, guarded=True)
    assert count == 6
    np.testing.assert_allclose(total / count, (4 * tables["a"] / 4 + 2 * tables["b"] / 2) / 6)
    total, _ = combined(tables, images, (1, 2), 1.0, guarded=True)
    assert total[0, 1] < total[0, 0]
    liar = {**tables, "a": np.array([[0.0, 1e6]])}
    total, _ = combined(liar, images, (1, 2), 1.0, guarded=True)
    assert total[0, 1] < total[0, 0], "one site's large number does not turn the choice of the other two"
