"""What a request would take of the machine, against the site's limits, without taking it."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from fed_diffmic.config.compose import compose, compose_site
from fed_diffmic.config.policy_limits import Limits, most_threads
from fed_diffmic.config.spec import RunSpec, make_spec
from fed_diffmic.exchange import limits
from fed_diffmic.exchange.failures import LIMIT_MEMORY, LIMIT_SIZE
from fed_diffmic.exchange.limits import beyond_limits, limit_sentences


def spec(*settings: str) -> RunSpec:
    config = compose(None, list(settings))
    return make_spec(
        config, classes=["a", "b", "c"], task="multiclass", run_id="r", arm="federated", device="cpu"
    )  # fmt: skip


def code(given: Limits, kind: str, asked: RunSpec, stage: str | None = None) -> int | None:
    found = beyond_limits(given, kind, asked, stage)
    return None if found is None else found[0]


@pytest.mark.parametrize("preset", ["tiny", "compact", "paper"])
@pytest.mark.parametrize("policy", ["standard", "closed"])
def test_the_presets_pass_both_policies(preset: str, policy: str) -> None:
    given = compose_site(None, [f"policy={policy}"]).policy.limits
    assert given == Limits()
    asked = spec(f"model={preset}", f"stages={preset}")
    assert code(given, "query", asked) is None
    for stage in ("guidance", "diffusion"):
        assert [code(given, kind, asked, stage) for kind in ("train", "evaluate", "assess")] == [None] * 3


@pytest.mark.parametrize("threads", [-1, 0, 3000, 2**40, 10**400])
def test_threads_beyond_the_machine_are_refused(threads: int) -> None:
    assert code(Limits(), "query", replace(spec(), threads=threads)) == LIMIT_SIZE


def test_threads_up_to_the_limit_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert (most_threads(Limits()), most_threads(Limits(threads=3))) == (8, 3)
    monkeypatch.setattr("os.cpu_count", lambda: 24)
    assert most_threads(Limits()) == 48
    for given, allowed in ((Limits(threads=3), 3), (Limits(), 48)):
        assert code(given, "query", replace(spec("model=tiny"), threads=allowed)) is None
        assert code(given, "query", replace(spec("model=tiny"), threads=allowed + 1)) == LIMIT_SIZE


BEYOND: dict[str, tuple[Limits, str, list[str], str | None, int]] = {
    "images": (Limits(image_side=63), "query", [], None, LIMIT_SIZE),
    "sampling": (Limits(sampling=39), "query", [], None, LIMIT_SIZE),
    "parameters": (Limits(parameters=1.1), "query", [], None, LIMIT_SIZE),
    "a batch": (Limits(), "train", ["stages.guidance.batch_size=65536"], "guidance", LIMIT_MEMORY),
    "draws": (Limits(), "train", ["stages.diffusion.draws=1024", "model.latent=8192", "model.timesteps=10",
                                  "stages.diffusion.batch_size=64", "model.regions=8"], "diffusion", LIMIT_MEMORY),
    "starts": (Limits(sampling=10**6), "evaluate", ["model.sampling_starts=1024", "model.latent=8192",
                                                    "model.timesteps=10"], "diffusion", LIMIT_MEMORY),
}  # fmt: skip


@pytest.mark.parametrize("name", BEYOND)
def test_each_limit_refuses_what_is_beyond_it(name: str) -> None:
    given, kind, settings, stage, refused = BEYOND[name]
    assert code(given, kind, spec("model=tiny", "stages=tiny", *settings), stage) == refused
    ample = Limits(image_side=4096, parameters=1e6, work_mib=1e8, sampling=10**9)
    assert code(ample, kind, spec("model=tiny", "stages=tiny", *settings), stage) is None


def test_a_size_that_cannot_be_found_is_refused_and_an_impossible_network_left_to_its_own_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = spec("model=tiny")
    assert code(Limits(), "query", replace(asked, model=replace(asked.model, image_side=32, regions=60))) is None

    def broken(*_: Any) -> None:
        raise RuntimeError("no meta kernel")

    monkeypatch.setattr(limits, "_beyond_network", broken)
    assert code(Limits(), "query", asked) == LIMIT_SIZE


OTHER: dict[str, float] = {"image_side": 511, "threads": 5, "sampling": 77, "grace_s": 31.5}


@pytest.mark.parametrize("name", [f.name for f in fields(Limits)])
def test_every_limit_is_in_the_text(name: str) -> None:
    changed = replace(Limits(), **{name: OTHER.get(name, 12345.5)})
    assert limit_sentences(changed) != limit_sentences(Limits())
    shown = f"{OTHER.get(name, 12345.5)}"
    assert any(shown in sentence.replace(",", "") for sentence in limit_sentences(changed))
