"""From stored values to brightness: modality rescale, then VOI LUT, window or percentiles (DICOM PS3.3 C.11, C.7.6.3).

Every step looks at one value at a time, so the whole way is one table over all values that the stored bits can hold
(at most 65,536), computed in float64 and then looked up. 0 is black and 65,535 white, whatever the header's
photometric interpretation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WHITE = 65535
LOW, HIGH = 0.005, 0.995
"""Shares of an image's values below which it is black and above which it is white, with percentiles."""


@dataclass(frozen=True, eq=False)
class Lut:
    """A look-up table of a header.

    Attributes:
        values: ``(n,)`` float64.
        first: input that the first value is for; smaller inputs take the first value, larger ones the last.
        bits: of the values.
    """

    values: np.ndarray
    first: int
    bits: int

    def of(self, inputs: np.ndarray) -> np.ndarray:
        """The value of each input."""
        return self.values[np.clip(np.rint(inputs).astype(np.int64) - self.first, 0, len(self.values) - 1)]


@dataclass(frozen=True)
class Window:
    """A window of a header: centre, width and function (``LINEAR``, ``LINEAR_EXACT``, ``SIGMOID``)."""

    centre: float
    width: float
    function: str = "LINEAR"

    @property
    def usable(self) -> bool:
        """Whether it is one: finite, and as wide as its function needs."""
        least = 1.0 if self.function == "LINEAR" else np.nextafter(0.0, 1.0)
        known = self.function in ("LINEAR", "LINEAR_EXACT", "SIGMOID")
        return known and bool(np.isfinite([self.centre, self.width]).all()) and self.width >= least

    def of(self, values: np.ndarray) -> np.ndarray:
        """Share of full brightness, 0 to 1, of each value (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""
        if self.function == "SIGMOID":
            return 1 / (1 + np.exp(np.clip(-4 * (values - self.centre) / self.width, -700, 700)))
        if self.function == "LINEAR_EXACT":
            return np.clip((values - self.centre) / self.width + 0.5, 0, 1)
        if self.width == 1:
            return (values > self.centre - 0.5).astype(np.float64)
        return np.clip((values - (self.centre - 0.5)) / (self.width - 1) + 0.5, 0, 1)


@dataclass(frozen=True, eq=False)
class Grey:
    """What a header says of one frame's grey values.

    Attributes:
        bits: stored.
        signed: two's complement.
        slope, intercept: of the rescale; 1 and 0 where there is none.
        modality: LUT in its place.
        voi: LUT of values of interest.
        window: in its place.
        inverted: MONOCHROME1, where the smallest value is white.
        padding: stored values, first and last, that are no picture; they become black.
    """

    bits: int
    signed: bool
    slope: float = 1.0
    intercept: float = 0.0
    modality: Lut | None = None
    voi: Lut | None = None
    window: Window | None = None
    inverted: bool = False
    padding: tuple[int, int] | None = None

    @property
    def lowest(self) -> int:
        """Smallest value that the stored bits hold."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    def stored(self) -> np.ndarray:
        """``(2 ** bits,)`` int64, every value that the stored bits hold, from the lowest on."""
        return np.arange(1 << self.bits, dtype=np.int64) + self.lowest

    def measured(self) -> np.ndarray:
        """``(2 ** bits,)`` float64, what each stored value means (Hounsfield units, ...)."""
        if self.modality is not None:
            return self.modality.of(self.stored())
        return self.stored() * float(self.slope) + float(self.intercept)

    def is_padding(self) -> np.ndarray:
        """``(2 ** bits,)`` bool."""
        if self.padding is None:
            return np.zeros(1 << self.bits, dtype=bool)
        first, last = sorted(self.padding)
        stored = self.stored()
        return (stored >= first) & (stored <= last)


@dataclass(frozen=True)
class Stated:
    """How brightness was made, for the table: ``how`` (voi_lut, window, range, percentile, colour) and its bounds."""

    how: str
    low: float
    high: float


def brightness(grey: Grey, mode: str, counts: np.ndarray) -> tuple[np.ndarray, Stated]:
    """Brightness of every stored value, and how it was made.

    Args:
        grey: of the frame.
        mode: auto, header or percentile (``dicom.window``).
        counts: ``(2 ** bits,)`` how often each stored value occurs in the frame.

    Returns:
        ``(2 ** bits,)`` uint16, and the values that become black and white (for a LUT its first and last input).
    """
    measured, padding = grey.measured(), grey.is_padding()
    share, stated = _share(grey, mode, measured, np.where(padding, 0, counts))
    if grey.inverted:
        share = 1 - share
    table = np.rint(share * WHITE).astype(np.uint16)
    table[padding] = 0
    return table, stated


def _share(grey: Grey, mode: str, measured: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, Stated]:
    if mode != "percentile" and grey.voi is not None:
        last = grey.voi.first + len(grey.voi.values) - 1
        share = np.clip(grey.voi.of(measured) / float((1 << grey.voi.bits) - 1), 0, 1)
        return share, Stated("voi_lut", float(grey.voi.first), float(last))
    if mode != "percentile" and grey.window is not None and grey.window.usable:
        window = grey.window
        return window.of(measured), Stated("window", window.centre - window.width / 2, window.centre + window.width / 2)
    if mode == "header" or (mode == "auto" and grey.bits <= 8):
        return _between(measured, float(measured.min()), float(measured.max()), "range")
    low, high = _percentiles(measured, counts)
    return _between(measured, low, high, "percentile")


def _between(measured: np.ndarray, low: float, high: float, how: str) -> tuple[np.ndarray, Stated]:
    span = high - low
    share = np.clip((measured - low) / span, 0, 1) if span > 0 else (measured > low).astype(np.float64)
    return share, Stated(how, low, high)


def _percentiles(measured: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Smallest measured values that at least a share of :data:`LOW` and :data:`HIGH` of the pixels do not exceed."""
    if not counts.any():  # nothing but padding
        return float(measured.min()), float(measured.max())
    order = np.argsort(measured, kind="stable")
    below = np.cumsum(counts[order])
    places = np.searchsorted(below, [LOW * below[-1], HIGH * below[-1]])
    low, high = measured[order][places]
    return float(low), float(high)
