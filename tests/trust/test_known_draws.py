"""A coordinator that knows which image was in which step, and one that sorts images with a frozen part of its own.

Whole passes over the images tell nothing by how often each image is in them, but steps weigh differently: where the
order is known, as many rounds as there are images are solved for each image's own gradient. The order is the site's
own (``policy.floors.secret_draws``); each attack is carried out against the floors without that as well, to show that
it is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from client import site as client_site
from fed_diffmic.config.policy_floors import Floors
from fed_diffmic.config.spec import RunSpec
from fed_diffmic.exchange import failures
from fed_diffmic.exchange.payload import Payload
from fed_diffmic.files import tensors_digest
from fed_diffmic.seeding import numpy_generator
from fed_diffmic.training import stages
from fed_diffmic.training.local import batches
from fed_diffmic.transport.messages import failure_of, from_record
from tests import site_rules, toy
from tests.client.test_app import AMPLE, context, send, task

READ = np.arange(8) * toy.SIDE + 1  # pixels that the attacker is after
WITHOUT = replace(Floors(), secret_draws=False)
Edit = Callable[[dict[str, np.ndarray]], None]


class Pixels(nn.Module):
    """A frozen part that hands eight pixels on, and a classifier on them: its gradient is a label and these pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(3 * toy.SIDE**2, len(READ))
        self.frozen.requires_grad_(False)
        self.head = nn.Linear(len(READ), len(toy.CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(images.flatten(1)))


class Sorter(nn.Module):
    """Two frozen layers that can hand pixels of an image to inputs that are its own, by its brightness."""

    BINS = 24

    def __init__(self) -> None:
        super().__init__()
        width = 2 * self.BINS + len(READ)
        self.one = nn.Linear(3 * toy.SIDE**2, width)
        self.two = nn.Linear(width, self.BINS * len(READ))
        self.one.requires_grad_(False)
        self.two.requires_grad_(False)
        self.head = nn.Linear(self.BINS * len(READ), len(toy.CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(images.flatten(1))))))


def hand_on(tensors: dict[str, np.ndarray]) -> None:
    for value in tensors.values():
        value[...] = 0
    tensors["base/frozen.weight"][np.arange(len(READ)), READ] = 1


def sort_by_brightness(tensors: dict[str, np.ndarray]) -> None:
    """Bin k's inputs are ``relu(pixel + 1 + 10 (in bin k) - 10)``: nought for every image that is in another bin."""
    bins, steep = Sorter.BINS, 10000.0
    for value in tensors.values():
        value[...] = 0
    seen = toy.toy_site("a", 1, count=72).train.images(np.arange(36)).flatten(1).numpy()
    brightness = np.quantile(seen.mean(axis=1), np.arange(bins) / bins)  # of other images, for a real attacker
    one, low = tensors["base/one.weight"], brightness / 127.5 - 1 - 1e-4
    one[: 2 * bins] = steep / one.shape[1]
    tensors["base/one.bias"][:bins] = -low * steep
    tensors["base/one.bias"][bins : 2 * bins] = -low * steep - 1
    one[2 * bins + np.arange(len(READ)), READ] = 1
    tensors["base/one.bias"][2 * bins :] = 1
    two = tensors["base/two.weight"].reshape(bins, len(READ), -1)
    for k in range(bins):
        two[k, :, [k, bins + k]] = [[10.0], [-10.0]]
        if k + 1 < bins:
            two[k, :, [k + 1, bins + k + 1]] = [[-10.0], [10.0]]
        two[k, np.arange(len(READ)), 2 * bins + np.arange(len(READ))] = 1
    tensors["base/two.bias"][...] = -10


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.install_toy_networks(monkeypatch.setattr)
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def ask(tmp_path: Path) -> Any:
    """Asks a site with half of ``count`` images to train on under the floors that are given."""
    where, secret = context(tmp_path), tmp_path / "a" / "floors" / "secret"
    secret.parent.mkdir(parents=True)
    secret.write_text("11" * 32)  # of which images are looked at, and of the order: the same each time

    def asked(floors: Floors, spec: RunSpec, edit: Edit, round_index: int = 1, count: int = 72) -> Any:
        source = toy.ToySource({"a": toy.toy_site("a", 1, count=count)})
        free: dict[str, Any] = {"runs": ["*"], "max_rounds": 200, "min_count": 10, "floors": floors}
        client_site.register_source(source, rules=site_rules.rules(tmp_path / "log", "a", **free))
        made = task("train", spec, round=round_index)
        tensors = {name: value.copy() for name, value in made.tensors.items()}
        edit(tensors)
        base = {name.removeprefix("base/"): value for name, value in tensors.items() if name.startswith("base/")}
        weights = {name: value for name, value in tensors.items() if not name.startswith("base/")}
        named = {"base": tensors_digest(base), "weights": tensors_digest(weights)}
        reply = send(Payload("train", {**made.header, **named}, tensors), "train", where)
        failed = failure_of(reply)
        return from_record(reply.content, AMPLE) if failed is None else failed[0]

    yield asked
    client_site.register_source(toy.ToySource({}))


def plain(**settings: Any) -> RunSpec:
    chosen = {"momentum": 0.0, "lr": 1e-3, "rounds": 1, **settings}
    return toy.toy_spec(optimizer="sgd", clip_norm=100.0, schedule="constant", weight_decay=0.0, **chosen)


def pixels(count: int = 72) -> np.ndarray:
    """What is to be read: ``(count / 2, 8)``."""
    images = toy.toy_site("a", 1, count=count).train.images(np.arange(count // 2))
    return images.flatten(1).numpy()[:, READ].astype(float)


def read(gradients: np.ndarray) -> np.ndarray:
    """Pixels ``(n, 8)`` from gradients ``(n, 27)`` of single images in the classifier, all 0 before."""
    label = gradients[:, -len(toy.CLASSES) :].argmin(axis=1)
    of_label = gradients[:, : -len(toy.CLASSES)].reshape(len(gradients), len(toy.CLASSES), -1)
    rows = np.arange(len(gradients))
    shown = of_label[rows, label] / gradients[rows, len(READ) * len(toy.CLASSES) + label, None]
    return (shown * 0.5 + 0.5) * 255


def update(reply: Payload) -> np.ndarray:
    return np.concatenate([reply.tensors["head.weight"].ravel(), reply.tensors["head.bias"]]).astype(float)


@pytest.mark.parametrize("floors", [WITHOUT, Floors()], ids=["known order", "as shipped"])
def test_whole_passes_with_momentum_are_not_solved_for_single_images(
    ask: Any, monkeypatch: pytest.MonkeyPatch, floors: Floors
) -> None:
    monkeypatch.setattr(stages, "build_guidance", lambda *_: Pixels())
    spec = plain(rounds=100, batch_size=9, epochs=1.0, momentum=0.9)
    weights, found = [], []
    for index in range(1, 39):  # the same weights each time, and 36 images
        found.append(update(ask(floors, spec, hand_on, index)))
        order = batches(36, 9, numpy_generator(spec.seed, "order", "guidance", "a", index))
        weights.append(np.zeros(36))
        for step in range(4):
            weights[-1][next(order)] -= 1e-3 / 9 * sum(0.9**later for later in range(4 - step))
    shown = read(np.linalg.lstsq(np.array(weights), np.array(found), rcond=1e-6)[0])
    error = float(np.abs(shown - pixels()).mean())
    chance = float(np.abs(pixels() - pixels().mean(axis=0)).mean())
    assert error < 1 if not floors.secret_draws else error > chance


@pytest.mark.parametrize("floors", [WITHOUT, Floors()], ids=["known order", "as shipped"])
def test_two_runs_of_one_seed_do_not_differ_by_one_image(
    ask: Any, monkeypatch: pytest.MonkeyPatch, floors: Floors
) -> None:
    """Of 64 images two batches of 16 and three of 11 are the first 32 and the first 33 of one order."""
    monkeypatch.setattr(stages, "build_guidance", lambda *_: Pixels())
    sums = []
    for batch, steps in ((16, 2), (11, 3)):
        spec = replace(plain(batch_size=batch, steps=steps, lr=1e-4), run_id=f"run{batch}")
        sums.append(update(ask(floors, spec, hand_on, count=128)) * -batch / 1e-4)
    shown = read((sums[1] - sums[0])[None])
    nearest = float(np.abs(pixels(128) - shown).max(axis=1).min())
    assert nearest < 1 if not floors.secret_draws else nearest > 5


def test_a_frozen_part_that_sorts_images_is_refused(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "build_guidance", lambda *_: Sorter())
    spec = plain(batch_size=36, steps=1, lr=1.0)
    assert ask(Floors(), spec, sort_by_brightness) == failures.FLOOR_ISOLATED
    reply = ask(replace(Floors(), isolation=False), spec, sort_by_brightness)
    gradient = -reply.tensors["head.weight"].reshape(len(toy.CLASSES), Sorter.BINS, len(READ))
    label = gradient.sum(axis=2).argmin(axis=0)
    inputs = gradient[label, np.arange(Sorter.BINS)] * 36 / (-2 / 3)
    shown = (inputs - 1) * 127.5 + 127.5
    alone = [np.abs(pixels() - row).max(axis=1).min() < 3 for row in shown]
    assert sum(alone) >= 3, "the attack itself: images of which nothing but pixels is in the update"
