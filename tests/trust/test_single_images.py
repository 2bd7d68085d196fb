"""A coordinator that asks so that what leaves tells of one image: each way is refused, or leaves nothing of it.

In each case the settings are the shipped floors unless the case says otherwise; the site has 64 training images of as
many patients.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client import floors as client_floors
from client import site as client_site
from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.data.site import SiteData
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.privacy.isolation import Isolation
from fed_diffmic.transport.messages import failure_of, from_record
from tests import site_rules, toy
from tests.client.test_app import AMPLE, context, send, task

SHIPPED = replace(Floors(), isolation=False)  # the toy network has no encoder; isolation has a case of its own


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def site(tmp_path: Path) -> Any:
    def under(data: SiteData | None = None, floors: Floors = SHIPPED, **changes: Any) -> None:
        source = toy.ToySource({"a": data or toy.toy_site("a", 1, count=128)})
        open_rules: dict[str, Any] = {"max_rounds": 200, "max_epochs": 1e6, "min_count": 10, **changes}
        client_site.register_source(source, rules=site_rules.rules(tmp_path / "log", "a", floors=floors, **open_rules))

    yield under
    client_site.register_source(toy.ToySource({}))


def asked(tmp_path: Path, spec: RunSpec, kind: str = "train", **changes: Any) -> Message:
    return send(task(kind, spec, **changes), kind, context(tmp_path))


def code(reply: Message) -> int:
    failed = failure_of(reply)
    return 0 if failed is None else failed[0]


def answer(reply: Message) -> Payload:
    assert failure_of(reply) is None
    return from_record(reply.content, AMPLE)


def one_step(batch: int, rounds: int = 1, **more: Any) -> RunSpec:
    return toy.toy_spec(
        rounds=rounds, steps=1, batch_size=batch, optimizer="sgd", momentum=0.0, clip_norm=0.0, **more
    )  # fmt: skip


def nothing_left(tmp_path: Path) -> bool:
    return not list((tmp_path / "a").rglob("updates/*.safetensors"))


@pytest.mark.parametrize(
    ("batch", "expected"), [(2, failures.FLOOR_STEP), (7, failures.FLOOR_STEP), (8, failures.FLOOR_UPDATE)]
)
def test_an_update_of_few_images_is_refused_before_it_is_computed(
    tmp_path: Path, site: Any, batch: int, expected: int
) -> None:
    site()
    assert code(asked(tmp_path, one_step(batch))) == expected
    assert nothing_left(tmp_path)


def test_one_image_a_step_is_refused(tmp_path: Path, site: Any) -> None:
    site()
    spec = one_step(1)
    spec = replace(spec, model=replace(spec.model, norm="group"))
    assert code(asked(tmp_path, spec)) == failures.FLOOR_STEP
    assert nothing_left(tmp_path)


def test_few_patients_behind_many_images_are_few(tmp_path: Path, site: Any) -> None:
    data = toy.toy_site("a", 1, count=128)
    groups = np.array([str(i % 3) for i in range(len(data.train))])
    site(replace(data, train=replace(data.train, groups=groups)))
    assert code(asked(tmp_path, one_step(32))) == failures.FLOOR_STEP


def test_updates_that_together_could_be_solved_for_one_image_are_refused(tmp_path: Path, site: Any) -> None:
    """Each rests on enough; but a coordinator that knows the seed knows who was in which."""
    site()
    codes = [code(asked(tmp_path, one_step(12, rounds=100), round=index)) for index in range(1, 21)]
    assert codes[0] == 0
    assert failures.FLOOR_SHARE in codes
    assert set(codes) == {0, failures.FLOOR_SHARE}
    assert sum(c == 0 for c in codes) <= 16  # 64 images, a share of a quarter at most


def test_whole_passes_are_never_refused_for_their_number(tmp_path: Path, site: Any) -> None:
    site()
    spec = toy.toy_spec(rounds=100, batch_size=16, epochs=1.0)
    assert [code(asked(tmp_path, spec, round=index)) for index in range(1, 31)] == [0] * 30


def test_the_same_request_again_counts_once(tmp_path: Path, site: Any) -> None:
    site()
    spec = one_step(12, rounds=100)
    assert [code(asked(tmp_path, spec, round=1)) for _ in range(25)] == [0] * 25


def test_what_left_before_is_remembered_by_another_process(tmp_path: Path, site: Any) -> None:
    site()
    count = 0
    while code(asked(tmp_path, one_step(12, rounds=100), round=count + 1)) == 0:
        count += 1
        site()  # as after a restart
    assert 0 < count <= 16


def test_a_memory_whose_secret_is_gone_is_not_begun_anew(tmp_path: Path, site: Any) -> None:
    """Under a new secret no image that left before would be known again."""
    site()
    assert code(asked(tmp_path, one_step(12, rounds=100), round=1)) == 0
    (tmp_path / "a" / "floors" / "secret").unlink()
    assert code(asked(tmp_path, one_step(12, rounds=100), round=2)) == failures.MACHINE
    assert not (tmp_path / "a" / "floors" / "secret").exists()


def test_a_set_that_grew_by_one_patient_gives_the_old_sets_metrics(tmp_path: Path, site: Any) -> None:
    """Two answers about sets that differ in one patient would tell that patient's loss."""
    whole = toy.toy_site("a", 1, count=128)
    fewer = replace(whole, val=whole.val.subset(np.arange(len(whole.val) - 1)))
    spec = toy.toy_spec(rounds=100)
    site(fewer)
    before = answer(asked(tmp_path, spec, "evaluate", round=1)).metrics
    site(whole)
    after = answer(asked(tmp_path, spec, "evaluate", round=2)).metrics
    assert before["num_examples"] == after["num_examples"] == len(fewer.val)
    assert before == after
    site(replace(whole, val=whole.val.subset(np.arange(len(whole.val) - 8))))
    assert answer(asked(tmp_path, spec, "evaluate", round=3)).metrics["num_examples"] == len(whole.val) - 8


def test_a_loss_over_few_images_does_not_stand_beside_a_count_of_many(tmp_path: Path, site: Any) -> None:
    site(floors=replace(SHIPPED, step_images=0, step_patients=0, update_images=0, update_patients=0))
    found = answer(asked(tmp_path, one_step(4)))
    assert found.header["num_examples"] == 64
    assert "loss" not in found.metrics and "initial_loss" not in found.metrics


def test_sums_over_few_images_do_not_leave(tmp_path: Path, site: Any) -> None:
    few = toy.toy_site("a", 1, count=48)  # 12 validation images: enough for a loss, too few for hundreds of sums
    site(few)
    found = answer(asked(tmp_path, toy.toy_spec(), "evaluate", round=0, sums=True)).metrics
    assert found["num_examples"] == 12 and not [name for name in found if name.startswith("nll/")]
    site(floors=SHIPPED)
    found = answer(asked(tmp_path, replace(toy.toy_spec(), run_id="toy"), "evaluate", round=0, sums=True)).metrics
    assert [name for name in found if name.startswith("nll/")]


def test_small_counts_are_marked_and_not_nought(tmp_path: Path, site: Any) -> None:
    site(toy.toy_site("a", 1, count=48), min_count=9)
    spec = toy.toy_spec()
    request = Payload("query", {"spec": spec.to_json(), "run": "toy", "arm": "federated", "ledger": ""})
    found = answer(send(request, "query", context(tmp_path))).header
    assert found["images"] == [24, 12, 12] and found["class_counts"] == [None, None, None]


@pytest.mark.parametrize("found", [True, False])
def test_weights_that_let_single_images_stand_out_are_refused(
    tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch, found: bool
) -> None:
    """What is measured: tests/privacy/test_isolation.py. Here: that it is asked, and what follows."""
    looked: list[int] = []

    def measured(module: Any, train: Any, *_: Any) -> Isolation:
        looked.append(len(train))
        return Isolation(16, 1.0 if found else 12.0, "x", 0.0, "", 1.0, "x", False)

    monkeypatch.setattr(client_floors, "measure_isolation", measured)
    site(floors=Floors())
    spec = toy.toy_spec(batch_size=16, epochs=1.0)
    assert code(asked(tmp_path, spec)) == (failures.FLOOR_ISOLATED if found else 0)
    assert looked == [64]
    assert nothing_left(tmp_path) == found


def test_asking_again_in_a_round_does_not_look_at_other_images(
    tmp_path: Path, site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever is refused asks until the images that are looked at are fortunate ones."""
    chosen: list[int] = []

    def measured(module: Any, train: Any, device: Any, rng: np.random.Generator) -> Isolation:
        chosen.append(int(rng.integers(2**31)))
        return Isolation(16, 1.0, "x", 0.0, "", 1.0, "x", False)

    monkeypatch.setattr(client_floors, "measure_isolation", measured)
    site(floors=Floors())
    spec = toy.toy_spec(batch_size=16, epochs=1.0)
    for changes in ({}, {"keep": "0" * 64}, {"round": 2}):
        assert code(asked(tmp_path, spec, **changes)) == failures.FLOOR_ISOLATED
    assert chosen[0] == chosen[1] != chosen[2]
