"""Where a site computes: what it asked for, or a sentence that says what is not there."""

import pytest
import torch

from client.device import chosen_device
from fed_diffmic.errors import MachineError


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
