"""Where a site computes: what it asked for, or a sentence that says what is not there."""

import pytest
import torch

from client.device import chosen_device, chosen_devices
from fed_diffmic.config.compose import compose_site
from fed_diffmic.errors import ConfigError, MachineError


@pytest.fixture(params=[0, 2])
def cards(request, monkeypatch):
    """A machine with so many CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return request.param


def test_auto_takes_a_card_where_there_is_one(cards):
    assert chosen_device("auto") == ("cuda" if cards else "cpu")
    assert chosen_device("cpu") == "cpu"


@pytest.mark.parametrize(("name", "least"), [("cuda", 1), ("cuda:0", 1), ("cuda:1", 2), ("cuda:2", 3), ("mps", 99)])
def test_a_device_that_is_named_is_there_or_refused(cards, name, least):
    if cards >= least:
        assert chosen_device(name) == name
    else:
        with pytest.raises(MachineError, match=f"site.device={name}, but this machine has no such device"):
            chosen_device(name)


def test_apples_device_and_a_kind_that_nobody_trains_on(cards, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert chosen_device("mps") == "mps"
    with pytest.raises(MachineError):
        chosen_device("meta")


def test_several_devices_are_all_there_or_refused(cards):
    assert chosen_devices(["cpu", "cpu"]) == ("cpu", "cpu")
    if cards == 2:
        assert chosen_devices(["cuda:0", "cuda:1"]) == ("cuda:0", "cuda:1")
    else:
        with pytest.raises(MachineError, match="site.device=cuda:0, but"):
            chosen_devices(["cuda:0", "cuda:1"])


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("auto", ["auto"]),
        ("cuda:1", ["cuda:1"]),
        ("[cuda:0, cuda:1]", ["cuda:0", "cuda:1"]),
        ("cpu,cpu", ["cpu", "cpu"]),
    ],
)
def test_one_device_or_several_of_one_kind(said, read):
    assert compose_site(None, [f"site.device={said}"]).site.device == read


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("[]", "a list of cuda:N"),
        ("[gpu, gpu]", "a list of cuda:N"),
        ("[cuda, cuda]", "of one kind by number"),
        ("[cuda:0, cpu]", "of one kind by number"),
        ("[auto, auto]", "of one kind by number"),
        ("[mps, mps]", "of one kind by number"),
        ("[cuda:1, cuda:01]", "each card once"),
        (f"[{', '.join(['cpu'] * 17)}]", "at most 16"),
    ],
)
def test_devices_that_cannot_keep_step_are_refused(said, words):
    with pytest.raises(ConfigError, match=words):
        compose_site(None, [f"site.device={said}"])


def test_a_simulation_has_one_device():
    from fed_diffmic.config.compose import compose

    for said in ("[cpu, cpu]", "'cpu,cpu'"):
        with pytest.raises(ConfigError, match=r"run\.device"):
            compose(None, [f"run.device={said}"])
