"""Group ``dicom`` of a site: what of an archive is taken, how its values become a picture, and how it is fetched."""

from __future__ import annotations

from dataclasses import dataclass, field

from fed_diffmic.config.fields import Checked, option

WINDOWS = ("auto", "header", "percentile")
KINDS = ("image", "frames", "captured", "localizer", "unprocessed")


@dataclass(frozen=True)
class DicomWebConfig(Checked):
    """Group ``dicom.web``: the way to an archive that answers QIDO-RS and WADO-RS, and how much may be fetched."""

    query: list[str] = option(
        doc="what is asked for, as QIDO-RS attributes of studies: Modality=CR, StudyDate=20240101-20241231, ...",
        factory=list,
    )
    ca: str | None = option(None, "certificate of the archive's CA (PEM); none: those of this machine", path=True)
    proxy: str | None = option(None, "http://host:port of a proxy; none: HTTPS_PROXY is not looked at")
    token_file: str | None = option(None, "file that holds the bearer token (0600); none: no token", path=True)
    insecure: bool = option(False, "true: allow http:// to other than this machine; patients' images in the clear")
    max_files: int = option(
        100_000, "most files that may be fetched, and most studies looked into", ge=1, le=100_000_000
    )
    max_mib: float = option(100_000.0, "most MiB that the fetched files may take together", gt=0, le=1e9)
    page: int = option(200, "studies, or images of a study, asked for at a time", ge=1, le=10_000)
    timeout_s: float = option(120.0, "seconds that one answer may take, from first to last byte", gt=0, le=3600)
    retries: int = option(4, "further tries of a request that failed, with doubled pauses from one second", ge=0, le=10)


@dataclass(frozen=True)
class DicomConfig(Checked):
    """Group ``dicom``: `fed-diffmic data from-dicom` (docs/dicom.md)."""

    window: str = option(
        "auto",
        "from values to brightness. header: the VOI LUT or window, else the whole range of the bits; percentile: "
        "0.5 to 99.5 % of the image's own values; auto: the header's, else for more than 8 bits the percentiles",
        choices=WINDOWS,
    )
    kinds: list[str] = option(
        doc="what is taken: image (one frame), frames (several), captured (secondary capture, screen), localizer, "
        "unprocessed (FOR PROCESSING). Reports, presentation states, segmentations and the like never are",
        factory=lambda: ["image", "frames", "captured"],
        choices=KINDS,
    )
    frames: str = option(
        "one",
        "of several frames: one (the representative one that the header names, else the middle one) or all",
        choices=("one", "all"),
    )
    max_frames: int = option(64, "with frames=all: a file that holds more is left out", ge=1, le=100_000)
    burnt_in: str = option(
        "leave",
        "an image whose header says that text is burnt in, or in which text is seen: left out, or taken and marked",
        choices=("leave", "take"),
    )
    join: str = option(
        "auto",
        "column that finds an image's label: accession, sop (SOP instance UID), or the one that the table has",
        choices=("auto", "accession", "sop"),
    )
    label_column: str = option("label", "column of the labels' table that holds the label")
    max_megapixels: float = option(89.0, "an image of more pixels is refused before any is decoded", gt=0, le=89.0)
    max_file_mib: float = option(2048.0, "a larger file is neither read nor fetched", gt=0, le=65_536)
    seconds: float = option(60.0, "seconds that one picture may take to decode", ge=1, le=3600)
    web: DicomWebConfig = field(default_factory=DicomWebConfig)
