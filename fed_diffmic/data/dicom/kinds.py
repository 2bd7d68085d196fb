"""What a DICOM file is, by its SOP class and header: a kind that may be taken, or one that never is.

=================  ==========================================================  =====================================
kind               what it is                                                  rule
=================  ==========================================================  =====================================
image              one frame of pixels                                         taken
frames             several frames: cine, tomosynthesis, enhanced CT and MR     one frame (``dicom.frames``)
captured           secondary capture, screen save                              taken; text is looked for as in all
localizer          scout of a CT or MR series                                  left, unless ``dicom.kinds`` names it
unprocessed        FOR PROCESSING, not meant to be looked at                   left, unless ``dicom.kinds`` names it
report             structured report                                           never
presentation       presentation state; its window is not applied               never
key_objects        list of key images; the images themselves are taken         never
segmentation       segmentation, parametric map                                never
radiotherapy       dose, plan, structure set, treatment record, portal image   never
waveform           ECG and the like                                            never
document           encapsulated PDF, CDA, ...                                  never
video              MPEG, HEVC                                                  never
directory          DICOMDIR                                                    never (but may be named as the source)
no_picture         anything else without pixels                                never
=================  ==========================================================  =====================================

Overlays, curves and graphics are never drawn into a picture; overlays are counted.
"""

from __future__ import annotations

from pydicom.dataset import Dataset

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NEVER = (
    (f"{_STORAGE}88.59", "key_objects"),
    (f"{_STORAGE}88.", "report"),
    (f"{_STORAGE}11.", "presentation"),
    (f"{_STORAGE}66.", "segmentation"),
    (f"{_STORAGE}66", "segmentation"),
    (f"{_STORAGE}30", "segmentation"),
    (f"{_STORAGE}481.", "radiotherapy"),
    (f"{_STORAGE}9.", "waveform"),
    (f"{_STORAGE}104.", "document"),
    ("1.2.840.10008.1.3.10", "directory"),
)
_CAPTURED = f"{_STORAGE}7"
_VIDEO = "1.2.840.10008.1.2.4.10"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "PixelDataProviderURL")


def kind_of(ds: Dataset) -> str:
    """The kind of a file, one of those above."""
    sop_class = str(ds.get("SOPClassUID", "") or ds.file_meta.get("MediaStorageSOPClassUID", ""))
    for prefix, kind in _NEVER:
        if sop_class == prefix or (prefix.endswith(".") and sop_class.startswith(prefix)):
            return kind
    if str(ds.file_meta.get("TransferSyntaxUID", "")).startswith(_VIDEO):
        return "video"
    if not any(name in ds for name in _PIXELS):
        return "no_picture"
    kinds = [str(part).upper() for part in _several(ds.get("ImageType"))]
    if str(ds.get("PresentationIntentType", "")).upper() == "FOR PROCESSING":
        return "unprocessed"
    if "LOCALIZER" in kinds:
        return "localizer"
    if frames_of(ds) > 1:
        return "frames"
    if sop_class == _CAPTURED or sop_class.startswith(f"{_CAPTURED}.") or "SCREEN SAVE" in kinds:
        return "captured"
    return "image"


def frames_of(ds: Dataset) -> int:
    """Number of frames; 1 where it is not said, 0 where what is said is none."""
    value = ds.get("NumberOfFrames")
    if value in (None, ""):
        return 1
    try:
        return max(0, int(str(value)))
    except ValueError:
        return 0


def representative(ds: Dataset) -> int:
    """The frame, from 0, that stands for several: the one that the header names, else the middle one."""
    count = frames_of(ds)
    try:
        named = int(str(ds.get("RepresentativeFrameNumber", 0)))
    except ValueError:
        named = 0
    return named - 1 if 1 <= named <= count else max(0, count - 1) // 2


def _several(value: object) -> list[object]:
    if value is None or isinstance(value, str):
        return [] if value is None else [value]
    try:
        return list(value)  # type: ignore[call-overload]
    except TypeError:
        return [value]
