"""A site's own disk: found by digest, torn counts as absent, bounded, private."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.state import KEPT_BASES, SiteStore
from fed_diffmic.errors import MachineError
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.files import tensors_digest

KEY = ("run", "local/../../a", "guidance")


def tensors(value: float) -> dict[str, np.ndarray]:
    return {"exp_avg/w": np.full(3, value, np.float32), "step/w": np.array(value, np.float32)}


@pytest.fixture
def store(tmp_path: Path) -> SiteStore:
    return SiteStore(tmp_path / "site")


def damage(folder: Path) -> None:
    for file in folder.rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(bytes(data))


def test_the_folder_is_private(store: SiteStore) -> None:
    for folder in (store.folder, *store.folder.iterdir()):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_bases_are_found_by_digest_and_bounded(store: SiteStore) -> None:
    digests = []
    for n in range(KEPT_BASES + 2):
        store.keep_base(tensors(n))
        digests.append(tensors_digest(tensors(n)))
    assert store.base(digests[0]) is None
    kept = store.base(digests[-1])
    assert kept is not None
    assert tensors_digest(kept) == digests[-1]
    assert len(list((store.folder / "bases").iterdir())) == KEPT_BASES
    assert store.base(tensors_digest({})) == {}
    damage(store.folder)
    assert store.base(digests[-1]) is None


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "*", "A" * 64, "0" * 63, "0" * 64])
def test_no_digest_is_a_path(store: SiteStore, digest: str) -> None:
    store.keep_base(tensors(1))
    store.keep_site_state(KEY, 1, tensors(1), set())
    assert store.base(digest) is None
    assert store.site_state(KEY, digest) is None


def test_a_state_and_the_one_it_was_built_on_are_kept(store: SiteStore) -> None:
    one = store.keep_site_state(KEY, 1, tensors(1), set())
    two = store.keep_site_state(KEY, 2, tensors(2), {one})
    assert store.site_state(KEY, one) is not None
    again = store.keep_site_state(KEY, 2, tensors(2), {one})  # the coordinator asked round 2 again
    assert again == two
    assert store.site_state(KEY, one) is not None
    three = store.keep_site_state(KEY, 3, tensors(3), {two})
    assert store.site_state(KEY, one) is None
    assert store.site_state(KEY, two) is not None
    four = store.keep_site_state(KEY, 4, tensors(4), {two})  # the coordinator never saw round 3
    assert store.site_state(KEY, three) is None
    assert store.site_state(KEY, two) is not None
    found = store.site_state(KEY, four)
    assert found is not None
    np.testing.assert_array_equal(found["exp_avg/w"], tensors(4)["exp_avg/w"])
    assert store.site_state(("run", "other", "guidance"), four) is None
    damage(store.folder)
    assert store.site_state(KEY, four) is None


def test_an_update_answers_its_own_request_only(store: SiteStore) -> None:
    reply = Payload("train.reply", {"round": 1, "state": ""}, {"w": np.arange(3, dtype=np.float32)}, {"loss": 0.5})
    assert store.update(KEY, "r" * 64) is None
    store.keep_update(KEY, "r" * 64, reply)
    kept = store.update(KEY, "r" * 64)
    assert kept is not None
    assert (kept.kind, kept.header, kept.metrics) == (reply.kind, reply.header, reply.metrics)
    np.testing.assert_array_equal(kept.tensors["w"], reply.tensors["w"])
    assert store.update(KEY, "q" * 64) is None
    assert store.update(("run", "other", "guidance"), "r" * 64) is None
    damage(store.folder)
    assert store.update(KEY, "r" * 64) is None


def test_a_cut_update_counts_as_absent(store: SiteStore) -> None:
    store.keep_update(KEY, "r" * 64, Payload("train.reply", {"state": ""}, {"w": np.zeros(3, np.float32)}))
    (file,) = (store.folder / "updates").iterdir()
    for cut in (0, 4, 20, file.stat().st_size - 1):
        file.write_bytes(file.read_bytes()[:cut])
        assert store.update(KEY, "r" * 64) is None


def test_nothing_leaves_the_folder_whatever_the_arm_is_called(store: SiteStore, tmp_path: Path) -> None:
    store.keep_site_state(KEY, 1, tensors(1), set())
    store.keep_update(KEY, "r" * 64, Payload("train.reply", {"state": ""}))
    assert [p.name for p in tmp_path.iterdir()] == ["site"]
    store.purge()
    assert list(store.folder.rglob("*.safetensors")) == []


def test_a_folder_that_cannot_be_made_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError):
        SiteStore(tmp_path / "file" / "site")


@pytest.mark.parametrize("kind", ["evaluate", "conform", "assess"])
def test_after_a_question_about_its_result_a_stage_is_not_trained(store: SiteStore, kind: str) -> None:
    key, other = ("run", "federated", "guidance"), ("run", "federated", "diffusion")
    store.record_answer(key, "train", 1, "one")
    store.record_answer(key, "evaluate", 1, "judged")
    assert store.may_answer(key, "train", 2, "two")
    store.record_answer(key, kind, 0, "result")
    assert not store.may_answer(key, "train", 2, "two") and not store.may_answer(key, "train", 2, "two", masked=True)
    assert store.may_answer(key, "train", 1, "one") and store.may_answer(other, "train", 1, "another")
