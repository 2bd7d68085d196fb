"""Devices of virtual sites: what each part does, that nothing else decides, and that strength 0 is no device."""

import numpy as np
import pytest
import torch

from fed_diffmic.data.acquisition import AcquiredImages, Device, acquired_keys, device_of

PLAIN = {"contrast": 1.0, "brightness": 0.0, "gains": (1.0, 1.0, 1.0), "resolution": 1.0, "noise": 0.0}


def pictures(count: int = 4, side: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, side, side), dtype=np.uint8))


def through(images: torch.Tensor, **changes) -> torch.Tensor:
    return Device(**{**PLAIN, **changes}).apply(images, np.arange(len(images), dtype=np.uint64))


def test_strength_nought_changes_nothing():
    device = device_of("site-1", 3, 0.0)
    assert device == Device(**PLAIN)
    assert torch.equal(device.apply(pictures(), np.zeros(4, np.uint64)), pictures())


def test_each_part_by_hand():
    grey = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    assert through(grey, contrast=0.5).unique().tolist() == [114]  # 127.5 + 0.5 * (100 - 127.5)
    assert through(grey, brightness=0.1).unique().tolist() == [126]  # 100 + 25.5, halves to even
    assert through(grey, gains=(1.2, 1.0, 0.8)).unique().tolist() == [100]  # grey images get no cast
    colour = grey.clone()
    colour[:, 2] = 50
    cast = through(colour, gains=(1.2, 1.0, 0.8))
    assert [cast[0, c].unique().tolist() for c in range(3)] == [[120], [100], [40]]
    noisy = through(torch.full((1, 3, 64, 64), 128, dtype=torch.uint8), noise=0.05).float()
    assert float(noisy.std()) == pytest.approx(0.05 * 255, rel=0.05)
    assert torch.equal(noisy[:, 0], noisy[:, 1])  # of the detector, not of a colour


def test_resolution_takes_detail_away_and_keeps_the_mean():
    sharp = pictures()
    soft = through(sharp, resolution=0.33)
    assert soft.shape == sharp.shape
    assert float(soft.float().std()) < 0.6 * float(sharp.float().std())
    assert float(soft.float().mean()) == pytest.approx(float(sharp.float().mean()), abs=1.5)


def test_a_device_depends_on_seed_and_site_alone_and_is_bounded():
    found = [device_of(f"s{i}", seed, 1.0) for i in range(200) for seed in (0, 1)]
    assert device_of("s7", 1, 1.0) == found[15] and len(set(found)) == len(found)
    assert all(0.6 <= d.contrast <= 1.4 and abs(d.brightness) <= 0.15 for d in found)
    assert all(1 / 3 <= d.resolution <= 1 and 0 <= d.noise <= 0.06 for d in found)
    assert all(0.75 <= g <= 1.25 for d in found for g in d.gains)


class Cache:
    def images(self, rows):
        return pictures(8)[torch.from_numpy(np.asarray(rows))]


def test_every_row_is_seen_through_its_own_site_whatever_it_is_asked_with():
    devices = {"a": Device(**{**PLAIN, "noise": 0.1}), "b": Device(**{**PLAIN, "contrast": 0.5})}
    rows = {"a": np.array([0, 2, 4]), "b": np.array([1, 3])}
    keys = {name: own.astype(np.uint64) + np.uint64(9) for name, own in rows.items()}
    cache = AcquiredImages(Cache(), devices, rows, keys)
    together = cache.images(np.array([3, 0, 2, 1]))
    alone = torch.cat([cache.images(np.array([row])) for row in (3, 0, 2, 1)])
    assert torch.equal(together, alone)
    assert torch.equal(together[0], devices["b"].apply(pictures(8)[3:4], np.array([12], np.uint64))[0])
    assert torch.equal(together[1], devices["a"].apply(pictures(8)[:1], np.array([9], np.uint64))[0])


def test_other_devices_give_other_keys():
    keys = np.arange(5, dtype=np.uint64)
    one, two = (acquired_keys(keys, device_of(site, 0, 0.5)) for site in ("a", "b"))
    assert len({*keys.tolist(), *one.tolist(), *two.tolist()}) == 15
