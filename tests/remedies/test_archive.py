"""DICOM files, their labels and an archive that are refused: as the message says, an export or a query works."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from fed_diffmic.config.dicom import DicomConfig, DicomWebConfig
from fed_diffmic.data.dicom import dicomweb
from fed_diffmic.data.dicom.dicomweb import Archive
from fed_diffmic.data.dicom.export import Place, _alone, export
from fed_diffmic.data.dicom.identity import Names
from fed_diffmic.data.dicom.labels import Labels, read_labels
from fed_diffmic.data.dicom.sources import items_of
from fed_diffmic.data.dicom.web_access import checked_url, tls_context, token_of
from fed_diffmic.data.findings import Findings
from fed_diffmic.provision.authority import make_authority
from tests.data.dicom import archive
from tests.data.dicom.test_export import put
from tests.data.dicom.written import header, saved
from tests.proxy import serving
from tests.remedies.places import remedy_in, tries

WEB, ACCESS = "fed_diffmic/data/dicom/dicomweb.py::", "fed_diffmic/data/dicom/web_access.py::"
LABELS = "fed_diffmic/data/dicom/labels.py::"
FILES = {("1.4.1", "1.5.1", "1.3.1"): saved(header(1))}
HOST = "https://pacs.example.org/dicom-web"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> type[archive.Archive]:
    """An archive of this test's own, asked without pauses."""
    monkeypatch.setattr(dicomweb.time, "sleep", lambda seconds: None)
    return type("Server", (archive.Archive,), {"files": dict(FILES), "asked": [], "fails": {}})


def fetched(url: str, **config: object) -> int:
    """How many images come."""
    with Archive(url, DicomWebConfig(**{"retries": 0, "timeout_s": 20.0, **config})) as found:
        return len(found.fetch(Path("downloads"), Findings()))


@tries(
    f"{WEB}Archive._instances | Compare",
    f"{WEB}Archive._listed | Check the ad",
    f"{WEB}Archive._listed | Name the add",
    f"{WEB}Archive._once",
)
def test_what_an_archive_answers(served) -> None:
    token = Path("token")
    with serving(served) as address:
        url = f"http://{address}/dicom-web"
        served.token = "sesame"
        [key] = remedy_in(lambda: fetched(url), r"a token that it takes into dicom\.web\.(\w+)").groups()
        token.write_text("sesame\n")
        token.chmod(0o600)
        assert fetched(url, **{key: str(token)}) == 1
        served.token, served.files = "", {}
        [query] = remedy_in(lambda: fetched(url), r"dicom\.web\.query=\[(.*)\]\.").groups()
        served.files = dict(FILES)
        assert fetched(url, query=query.split(",")) == 1
        served.fails = {"studies": 1}
        remedy_in(lambda: fetched(url), "Check the address, the proxy and the archive; then go on")
        assert fetched(url) == 1
        page = type("Page", (served,), {"_list": lambda self, entries: self._send(200, b"<a>", "x")})
        with serving(page) as other:
            [end] = remedy_in(lambda: fetched(f"http://{other}/ui"), r"ends where (/studies) begins").groups()
        assert f"{url}{end}".startswith(url) and fetched(url) == 1


@tries(
    f"{ACCESS}checked_url | Write https:",
    f"{ACCESS}checked_url | Use https://",
    f"{ACCESS}checked_url | Attribute=va",
    f"{ACCESS}token_of | Run `chmod 6",
    f"{ACCESS}token_of | Name its fil",
    f"{ACCESS}token_of | Write the to",
    f"{ACCESS}tls_context",
)
def test_where_an_archive_is_and_what_opens_it() -> None:
    plain = DicomWebConfig()
    for wrong in ("pacs.example.org/x", "https://me:secret@pacs.example.org/x", "ftp://pacs.example.org/x"):
        [form] = remedy_in(lambda wrong=wrong: checked_url(wrong, plain), r"Write (https://host/path),").groups()
        assert "secret" not in checked_url(form, plain)
    [scheme] = remedy_in(lambda: checked_url(HOST.replace("https", "http"), plain), r"Use (https://):").groups()
    checked_url(scheme + HOST.split("//")[1], plain)
    [example] = remedy_in(lambda: checked_url(HOST, DicomWebConfig(query=["CR"])), r"for example (\S+)").groups()
    checked_url(HOST, DicomWebConfig(query=[example]))
    token = Path("token")
    [key] = remedy_in(lambda: token_of(token), r"Name its file in dicom\.web\.(\w+)").groups()
    assert hasattr(plain, key)
    token.write_text("two words")
    [mode, path] = remedy_in(lambda: token_of(token), r"Run `chmod (\d+) (\S+)`").groups()
    Path(path).chmod(int(mode, 8))
    remedy_in(lambda: token_of(token), "Write the token alone into it, on one line")
    token.write_text("sesame\n")
    assert token_of(token) == "sesame"
    token.write_text("# not a certificate")
    [key] = remedy_in(
        lambda: tls_context(str(token)), r"Name the CA's certificate \(PEM\) in dicom\.web\.(\w+)"
    ).groups()
    ca = str(make_authority(Path("ca")).certificate_path)
    assert isinstance(tls_context(getattr(DicomWebConfig(**{key: ca}), key)), ssl.SSLContext)


@tries(f"{LABELS}read_labels", f"{LABELS}_key_column | Say which on", f"{LABELS}_key_column | Name such a")
def test_tables_of_labels() -> None:
    def read(text: str, join: str = "auto", column: str = "label") -> int:
        Path("labels.csv").write_text(text)
        return len(read_labels(Path("labels.csv"), join, column, Findings()).of)

    [key] = remedy_in(lambda: read("accession,grade\nA,x\n"), r"say dicom\.(label_column)=NAME").groups()
    assert hasattr(DicomConfig(), key) and read("accession,grade\nA,x\n", column="grade") == 1
    both = "accession,sop_instance_uid,label\nA,1.2,x\n"
    for join in remedy_in(lambda: read(both), r"dicom\.join=(\w+) or dicom\.join=(\w+)").groups():
        assert read(both, join) == 1
    [name] = remedy_in(lambda: read("Accession No,label\nA,x\n"), r"looked for accession: \w+, \w+, (\w+)").groups()
    assert read(f"{name},label\nA,x\n") == 1


@tries(
    "fed_diffmic/data/dicom/export.py::_exported | {' '.join(di",
    "fed_diffmic/data/dicom/sources.py::_named_by | Name the fol",
)
def test_folders_of_dicom_files() -> None:
    folder, findings = Path("archive"), Findings()
    folder.mkdir()
    put(folder, "1.dcm", header(1))

    def exported(labels: dict[str, str]) -> object:
        joined = Labels("accession", labels, "labels.csv", frozenset())
        place = Place(Path("out").absolute(), Path("site").absolute(), "North")
        return export(items_of(folder, findings), DicomConfig(), joined, Names(b"s" * 32), place, Findings())

    remedy_in(lambda: exported({"A00002": "x"}), r"a row in labels\.csv with the (accession) that its header")
    assert exported({"A00001": "x"})
    (folder / "DICOMDIR").write_bytes(b"not one")
    remedy_in(
        lambda: list(items_of(folder / "DICOMDIR", findings)), "Name the folder that holds the images, or the file"
    )
    assert len([item for item in items_of(folder, findings) if item.path.suffix]) == 1


@tries("fed_diffmic/data/dicom/export.py::_alone")
def test_two_exports_into_one_folder() -> None:
    folder, out = Path("archive"), Path("out")
    folder.mkdir()
    out.mkdir(mode=0o700)
    put(folder, "1.dcm", header(1))

    def exported(into: Path) -> object:
        place = Place(into.absolute(), Path("site").absolute(), "North")
        return export(items_of(folder, Findings()), DicomConfig(), None, Names(b"s" * 32), place, Findings())

    with _alone(out):  # as the other export holds it
        [new] = remedy_in(lambda: exported(out), r"Wait until it has ended, or name a (new) folder").groups()
        assert exported(Path(new))
    assert exported(out)
