"""Values to brightness: by hand, and as pydicom does it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from fed_diffmic.data.dicom.brightness import WHITE, Grey, Lut, Window, brightness
from fed_diffmic.data.dicom.frames import grey_of
from tests.data.dicom.written import header, ramp, with_pixels


def test_a_case_by_hand():
    """Stored 0..15 are -10..20 HU by twos; centre 5, width 11: black up to -0.5, white above 9.5 (C.11.2.1.2)."""
    grey = Grey(bits=4, signed=False, slope=2.0, intercept=-10.0, window=Window(5.0, 11.0))
    table, stated = brightness(grey, "auto", np.ones(16))
    # stored 5 measures 0: (0 - 4.5) / 10 + 0.5 = 0.05; stored 7 measures 4: 0.45; 9 measures 8: 0.85; 10 is white
    between = [round(share * WHITE) for share in (0.05, 0.45, 0.85)]
    assert table[[0, 4, 5, 7, 9, 10, 15]].tolist() == [0, 0, *between, WHITE, WHITE]
    assert (stated.how, stated.low, stated.high) == ("window", -0.5, 10.5)


def test_monochrome1_padding_and_sign_by_hand():
    grey = Grey(bits=3, signed=True, inverted=True, padding=(-4, -4), window=Window(0.0, 8.0, "LINEAR_EXACT"))
    table, _ = brightness(grey, "header", np.ones(8))
    share = np.array([0.0, *(1 - ((v / 8) + 0.5) for v in range(-3, 4))])  # -4 is padding: black
    np.testing.assert_array_equal(table, np.rint(share * WHITE))


def test_percentiles_by_hand():
    """Of 1000 pixels five have the value 0 and five the value 9: neither decides."""
    counts = np.zeros(16)
    counts[[0, 2, 7, 9]] = 4, 496, 496, 4
    table, stated = brightness(Grey(bits=4, signed=False), "percentile", counts)
    assert (stated.how, stated.low, stated.high) == ("percentile", 2.0, 7.0)
    assert table[[0, 2, 7, 9]].tolist() == [0, 0, WHITE, WHITE]
    assert table[4] == round(2 / 5 * WHITE)


def test_padding_does_not_count_among_the_percentiles():
    counts = np.zeros(16)
    counts[[0, 5, 10]] = 1000, 50, 50
    _, stated = brightness(Grey(bits=4, signed=False, padding=(0, 0)), "percentile", counts)
    assert (stated.low, stated.high) == (5.0, 10.0)


@pytest.mark.parametrize(
    ("mode", "bits", "window", "how"),
    [
        ("auto", 12, Window(100, 50), "window"),
        ("auto", 12, None, "percentile"),
        ("auto", 8, None, "range"),
        ("auto", 12, Window(100, 0.5), "percentile"),
        ("header", 12, None, "range"),
        ("header", 12, Window(100, 50, "CUBIC"), "range"),
        ("percentile", 8, Window(100, 50), "percentile"),
    ],
)
def test_which_way_is_taken_is_stated(mode, bits, window, how):
    assert brightness(Grey(bits=bits, signed=False, window=window), mode, np.ones(1 << bits))[1].how == how


def of_pydicom(ds, values):
    """pydicom's own way from stored values to 0..1."""
    measured = apply_modality_lut(values, ds)
    shown = apply_voi_lut(measured, ds)
    if "VOILUTSequence" in ds:
        return shown / ((1 << ds.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    low = -(1 << (ds.BitsStored - 1)) if ds.PixelRepresentation else 0
    ends = apply_modality_lut(np.array([low, low + (1 << ds.BitsStored) - 1]), ds)
    return (shown - ends.min()) / (ends.max() - ends.min())


@settings(max_examples=30, deadline=None)
@given(
    bits=st.sampled_from([8, 10, 12, 16]),
    signed=st.booleans(),
    slope=st.sampled_from([0.5, 1.0, 2.25]),
    intercept=st.sampled_from([-1024.0, 0.0, 3.5]),
    centre=st.integers(-500, 3000),
    width=st.integers(2, 5000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_rescale_and_window_agree_with_pydicom(bits, signed, slope, intercept, centre, width, function):
    values = ramp(bits).astype(np.int64) - (signed << (bits - 1))
    ds = with_pixels(header(), values.astype(np.int16 if signed else np.uint16), bits=bits)
    ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = centre, width, function
    grey = grey_of(ds, 0)
    table, stated = brightness(grey, "auto", np.ones(1 << bits))
    expected = of_pydicom(ds, values)
    assert stated.how == "window"
    assert np.abs(table[values - grey.lowest] / WHITE - expected).max() < 1e-5


@pytest.mark.parametrize("first", [0, 100])
@pytest.mark.parametrize("kind", ["modality", "voi"])
def test_tables_agree_with_pydicom(kind, first):
    from pydicom.dataset import Dataset

    values = ramp(10)
    ds = with_pixels(header(), values, bits=10)
    item = Dataset()
    item.LUTDescriptor = [512, first, 16 if kind == "modality" else 12]  # pydicom knows no other modality LUT
    item.LUTData = np.sort(np.random.default_rng(1).integers(0, 4096, 512)).astype(np.uint16).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    if kind == "modality":
        ds.ModalityLUTSequence = [item]
        found = grey_of(ds, 0).measured()[values]
        np.testing.assert_array_equal(found, apply_modality_lut(values, ds))
        return
    ds.VOILUTSequence = [item]
    grey = grey_of(ds, 0)
    table, stated = brightness(grey, "auto", np.ones(1024))
    assert stated.how == "voi_lut"
    assert np.abs(table[values] / WHITE - of_pydicom(ds, values)).max() < 1e-5


def test_a_table_gives_its_ends_beyond_them():
    lut = Lut(np.array([5.0, 7.0]), first=10, bits=3)
    assert lut.of(np.array([-100, 10, 11, 99])).tolist() == [5, 5, 7, 7]
