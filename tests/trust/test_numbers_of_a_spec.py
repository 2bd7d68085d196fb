"""A coordinator whose spec holds numbers that no configuration could: the site is as strict as the coordinator."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fed_diffmic.config.spec import RunSpec
from fed_diffmic.errors import ConfigError
from tests import toy

BAD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "std of nought": lambda s: s.update(std=[0.0] * 3),
    "std below nought": lambda s: s.update(std=[-0.5] * 3),
    "std not a number": lambda s: s.update(std=[float("nan")] * 3),
    "std infinite": lambda s: s.update(std=[float("inf")] * 3),
    "std of one channel": lambda s: s.update(std=[0.5]),
    "std of five channels": lambda s: s.update(std=[0.5] * 5),
    "mean of 1e38": lambda s: s.update(mean=[1e38] * 3),
    "mean of two channels": lambda s: s.update(mean=[0.5] * 2),
    "mean of four hundred digits": lambda s: s.update(mean=[10**400] * 3),
    "a negative seed": lambda s: s.update(seed=-1),
    "a seed of four hundred digits": lambda s: s.update(seed=10**400),
    "a seed of two words": lambda s: s.update(seed=2**31),
    "three thousand threads": lambda s: s.update(threads=3000),
    "no thread": lambda s: s.update(threads=0),
    "a thread too few": lambda s: s.update(threads=-1),
    "a huge number of threads": lambda s: s.update(threads=2**40),
    "a modality that is none": lambda s: s.update(modality="zzz"),
    "a device that is none": lambda s: s.update(device="/dev/sda"),
    "a device by expression": lambda s: s.update(device="cuda:9999"),
    "no name of a run": lambda s: s.update(run_id=""),
    "a run named by a book": lambda s: s.update(run_id="x" * 10_000),
    "classes without a name": lambda s: s.update(classes=["a", ""]),
    "one class to choose from": lambda s: s.update(classes=["a"]),
    "a latent of four hundred digits": lambda s: s["model"].update(latent=10**400),
    "a crop larger than the image": lambda s: s["model"].update(crop=64),
    "more steps of sampling than there are": lambda s: s["model"].update(sampling_steps=1000, timesteps=10),
    "a learning rate of four hundred digits": lambda s: s["stages"]["guidance"].update(lr=10**400),
    "a learning rate not a number": lambda s: s["stages"]["guidance"].update(lr=float("nan")),
    "a batch of none": lambda s: s["stages"]["guidance"].update(batch_size=0),
    "a batch of one under batch norm": lambda s: s["stages"]["guidance"].update(batch_size=1),
    "rounds without number": lambda s: s["stages"]["guidance"].update(rounds=None),
    "a blend without guidance": lambda s: s["stages"]["guidance"].update(blend=True),
    "options of a class": lambda s: s["strategy"].update(options={"a": 1}),
    "a class to import": lambda s: s["strategy"].update(class_path="os.system"),
    "noise with batch norm": lambda s: s["strategy"].update(client_noise_multiplier=1.0, weighting="equal"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_site_refuses_the_numbers_that_a_coordinator_refuses(name: str) -> None:
    value = json.loads(toy.toy_spec().to_json())
    BAD[name](value)
    with pytest.raises(ConfigError):
        RunSpec.from_json(json.dumps(value))


def test_a_spec_nested_without_end_is_refused() -> None:
    with pytest.raises(ConfigError):
        RunSpec.from_json('{"strategy":{"options":' + "[" * 200_000 + "]" * 200_000 + "}}")
    with pytest.raises(ConfigError):
        RunSpec.from_json("1" * 5000)


def test_the_spec_of_the_toy_run_is_one() -> None:
    assert RunSpec.from_json(toy.toy_spec().to_json()) == toy.toy_spec()
