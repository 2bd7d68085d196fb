"""Acquisition that differs from site to site, as transforms with known parameters: for studies of feature shift.

Each virtual site has a device of its own: contrast and brightness, a colour cast, a loss of resolution, and noise,
drawn from (seed, site) with a strength in ``[0, 1]``. At strength 1 the largest are: contrast 0.6 to 1.4, brightness
+-0.15 of the range, gains of the channels 0.75 to 1.25, resolution down to a third, noise with a standard deviation of
0.06 of the range. Grey images keep equal channels (no cast). What an image becomes depends on it and the device alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from fed_diffmic.data.cache import ImageCache
from fed_diffmic.seeding import numpy_generator


@dataclass(frozen=True)
class Device:
    """How a site's images come out.

    Attributes:
        contrast: factor about the middle of the range.
        brightness: added, as a share of the range.
        gains: factor of each channel.
        resolution: share of the side in pixels that is resolved, in (0, 1].
        noise: standard deviation, as a share of the range.
    """

    contrast: float
    brightness: float
    gains: tuple[float, float, float]
    resolution: float
    noise: float

    def apply(self, images: torch.Tensor, seeds: np.ndarray) -> torch.Tensor:
        """``(b, 3, H, W)`` uint8 to the same; ``seeds`` ``(b,)`` uint64 decide each image's noise."""
        x = images.to(torch.float32) / 255.0
        grey = (images[:, :1] == images).flatten(1).all(dim=1).view(-1, 1, 1, 1)
        gains = torch.tensor(self.gains).view(1, 3, 1, 1)
        x = torch.where(grey, x, x * gains)
        x = (x - 0.5) * self.contrast + 0.5 + self.brightness
        side = max(1, round(images.shape[-1] * self.resolution))
        if side < images.shape[-1]:
            small = interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
            x = interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
        if self.noise:
            shape = (1, *images.shape[-2:])
            drawn = [np.random.default_rng(int(seed)).standard_normal(shape, dtype=np.float32) for seed in seeds]
            x = x + self.noise * torch.from_numpy(np.stack(drawn))
        return (x.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def device_of(site: str, seed: int, strength: float) -> Device:
    """The device of a site; strength 0 changes nothing."""
    rng = numpy_generator(seed, "acquisition", site)
    contrast, brightness, *gains, blur, noise = rng.uniform(-1.0, 1.0, 7)
    return Device(
        contrast=float(1.0 + 0.4 * strength * contrast),
        brightness=float(0.15 * strength * brightness),
        gains=(
            float(1.0 + 0.25 * strength * gains[0]),
            float(1.0 + 0.25 * strength * gains[1]),
            float(1.0 + 0.25 * strength * gains[2]),
        ),
        resolution=float(1.0 - strength * (1.0 + blur) / 3.0),
        noise=float(0.06 * strength * (1.0 + noise) / 2.0),
    )


class AcquiredImages:
    """An image cache in which every row is seen through the device of the site that holds it.

    Args:
        cache: the images as published.
        devices: by site.
        rows: ``(n_k,)`` rows of the cache at each site.
        keys: ``(n_k,)`` content keys of these rows.
    """

    def __init__(
        self,
        cache: ImageCache,
        devices: Mapping[str, Device],
        rows: Mapping[str, np.ndarray],
        keys: Mapping[str, np.ndarray],
    ) -> None:
        self._cache = cache
        self._devices = dict(devices)
        self._site = {int(row): site for site, own in rows.items() for row in own}
        self._key = {int(r): int(k) for site in rows for r, k in zip(rows[site], keys[site], strict=True)}

    def images(self, rows: np.ndarray) -> torch.Tensor:
        """``(n, 3, H, H)`` uint8."""
        wanted = np.asarray(rows, dtype=np.int64)
        images = self._cache.images(wanted)
        sites = np.array([self._site[int(row)] for row in wanted], dtype=object)
        seeds = np.array([self._key[int(row)] for row in wanted], dtype=np.uint64)
        for site in np.unique(sites.astype(str)):
            chosen = np.flatnonzero(sites == site)
            index = torch.from_numpy(chosen)
            images[index] = self._devices[site].apply(images[index], seeds[chosen])
        return images


def acquired_keys(keys: np.ndarray, device: Device) -> np.ndarray:
    """Content keys ``(n,)`` of images seen through a device: other images, so other keys."""
    mark = int.from_bytes(hashlib.sha256(repr(device).encode()).digest()[:8], "little")
    return np.asarray(keys ^ np.uint64(mark))
