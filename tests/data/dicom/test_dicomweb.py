"""An archive on loopback: bounded, resumable, over TLS and a proxy, and what it may answer wrongly."""

import ssl
import time

import pytest

from fed_diffmic.config.dicom import DicomWebConfig
from fed_diffmic.data.dicom import dicomweb
from fed_diffmic.data.dicom.dicomweb import Archive, download_folder
from fed_diffmic.data.dicom.multipart import first_part
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import ConfigError, CredentialError, DataError, MachineError, UsageError
from fed_diffmic.provision.authority import make_authority
from tests.data.dicom import archive
from tests.data.dicom.written import header, saved
from tests.proxy import Proxy, serving

FILES = {(f"1.4.{n // 2}", f"1.5.{n}", f"1.3.{n}"): saved(header(n)) for n in range(1, 7)}


@pytest.fixture
def server():
    """A class of its own for each test: what it is asked and what it does is in its attributes."""
    return type("Server", (archive.Archive,), {"files": dict(FILES), "asked": [], "fails": {}})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(dicomweb.time, "sleep", lambda seconds: None)


def fetch(server, tmp_path, url=None, findings=None, max_file_mib=2048.0, **config):
    settings = DicomWebConfig(**{"retries": 1, "timeout_s": 20.0, "page": 2, **config})
    if url is not None:
        return fetch_from(url, tmp_path, settings, findings, max_file_mib)
    with serving(server) as address:
        return fetch_from(f"http://{address}/dicom-web", tmp_path, settings, findings, max_file_mib)


def fetch_from(url, tmp_path, settings, findings, max_file_mib):
    with Archive(url, settings, max_file_mib) as found:
        return found.fetch(tmp_path / "downloads", Findings() if findings is None else findings)


def contents(tmp_path):
    return sorted(path.read_bytes() for path in (tmp_path / "downloads").iterdir())


def instances(server):
    return [path for path in server.asked if path.count("/") == 5]


@pytest.mark.parametrize("paged", [True, False])
def test_everything_that_the_query_finds_is_fetched_once(server, tmp_path, paged):
    server.paged = paged
    items = fetch(server, tmp_path)
    assert contents(tmp_path) == sorted(FILES.values()) and len(items) == 6
    assert len(instances(server)) == len(set(instances(server))) == 6
    for path in (tmp_path / "downloads").iterdir():
        assert path.stat().st_mode & 0o077 == 0 and "1.3" not in path.name


@pytest.mark.parametrize("stated", [True, False])
def test_an_archive_that_gives_fewer_at_a_time_than_it_is_asked_for_is_asked_on(server, tmp_path, stated):
    """A limit of the archive's own: of 4 studies and of the 9 images of one, it gives 3 at a time."""
    server.most = 3
    server.files |= {("1.4.9", "1.5.9", f"1.3.9.{n}"): saved(header(90 + n)) for n in range(9)}
    if stated:
        server.states = {uid: sum(key[0] == uid for key in server.files) for uid, _, _ in server.files}
    findings = Findings()
    assert len(fetch(server, tmp_path, findings=findings, page=200)) == 15 and not list(findings)
    # the last page is known to be that where the number is known, else an empty one says so
    assert server.asked.count("studies/1.4.9/instances") == (4 if not stated else 3)


def test_images_that_an_archive_states_and_does_not_name_are_said(server, tmp_path):
    server.states = {"1.4.0": 1, "1.4.1": 5, "1.4.2": 3}
    findings = Findings()
    assert len(fetch(server, tmp_path, findings=findings)) == 6
    (said,) = findings
    assert said.code == "archive-names-fewer" and said.count == 3 + 1 and said.names == ("1.4.1", "1.4.2")
    assert "1.4" not in str(said) and said.remedy


def test_a_list_whose_rest_cannot_be_asked_for_is_said(server, tmp_path):
    server.offsets = False
    findings = Findings()
    assert len(fetch(server, tmp_path, findings=findings, page=3)) == 5  # 1 + 2 + 2 of three of the four studies
    (said,) = findings
    assert said.code == "archive-list-cut" and said.count == 1 and "dicom.web.page" in said.remedy
    assert len(fetch(server, tmp_path, findings=(again := Findings()), page=5)) == 6 and not list(again)


def test_an_answer_to_a_query_that_is_too_large_is_said(server, tmp_path, monkeypatch):
    monkeypatch.setattr(dicomweb, "_MOST_LIST", 100)
    with pytest.raises(DataError, match="answer to a query takes more") as caught:
        fetch(server, tmp_path)
    assert "dicom.web.page" in caught.value.remedy


def test_an_archive_that_goes_away_is_not_asked_for_every_image(server, tmp_path, monkeypatch):
    """Three images in vain: an archive out of reach ends the download, one that answers so is asked once for each."""
    gone, asked = [], []
    once = dicomweb.Archive._once

    def unreachable(self, path, *arguments):
        asked.append(path)
        if path.count("/") == 5 and len({one for one in asked if one.count("/") == 5}) > 2:
            gone.append(path)
            raise dicomweb.httpx.ConnectError("refused")
        return once(self, path, *arguments)

    with monkeypatch.context() as patch, serving(server) as address:
        patch.setattr(dicomweb.Archive, "_once", unreachable)
        with pytest.raises(MachineError, match="no longer be reached.*; 2 of 6 files") as caught:
            fetch(server, tmp_path, url=f"http://{address}/dicom-web")
        assert "goes on with the rest" in caught.value.remedy and len(contents(tmp_path)) == 2
        assert len(gone) == 3 * 2  # a try and a further one for each of three
    server.fails = {f"studies/{a}/series/{b}/instances/{c}": 9 for a, b, c in FILES if c != "1.3.6"}
    server.asked.clear()
    findings = Findings()
    with serving(server) as address:
        assert len(fetch(server, tmp_path / "b", url=f"http://{address}/dicom-web", findings=findings)) == 1
    assert len(instances(server)) == 3 * 2 + 2 + 1 and next(iter(findings)).count == 5


def test_a_download_that_was_killed_goes_on_where_it_was(server, tmp_path):
    class Killed(BaseException):
        pass

    def killed(what, done, total):
        if done == 3:
            raise Killed

    with serving(server) as address:
        with pytest.raises(Killed), Archive(f"http://{address}/dicom-web", DicomWebConfig()) as found:
            found.fetch(tmp_path / "downloads", Findings(), killed)
        assert len(contents(tmp_path)) == 3
        (tmp_path / "downloads" / ".x.dcm.abc.part").write_bytes(b"torn")  # what SIGKILL leaves of a write
        items = fetch(server, tmp_path, url=f"http://{address}/dicom-web")
    assert contents(tmp_path) == sorted(FILES.values()) and len(items) == 6
    assert len(instances(server)) == 6  # none twice


def test_an_answer_that_ends_in_the_middle_is_no_file(server, tmp_path):
    server.cut = "1.3.2"
    findings = Findings()
    items = fetch(server, tmp_path, findings=findings)
    assert len(items) == len(contents(tmp_path)) == 5
    (said,) = findings
    assert said.code == "not-fetched" and said.names == ("1.3.2",) and "1.3.2" not in str(said)


def test_an_archive_that_is_busy_is_asked_again(server, tmp_path):
    server.fails = {"studies": 1, "studies/1.4.0/series/1.5.1/instances/1.3.1": 1}
    assert len(fetch(server, tmp_path)) == 6
    server.fails = {"studies": 5}
    with pytest.raises(MachineError, match="HTTP 503"):
        fetch(server, tmp_path)


def test_quotas_on_files_and_bytes(server, tmp_path):
    with pytest.raises(DataError, match="more than 3 files") as caught:
        fetch(server, tmp_path, max_files=3)
    assert "max_files" in caught.value.remedy and not instances(server)
    size = max(map(len, FILES.values()))
    with pytest.raises(DataError, match="MiB") as caught:
        fetch(server, tmp_path, max_mib=2.5 * size / 2**20)
    assert "max_mib" in caught.value.remedy
    assert sum(map(len, contents(tmp_path))) <= 2.5 * size
    assert len(fetch(server, tmp_path)) == 6


def test_one_file_has_a_bound_of_its_own_and_the_others_are_fetched(server, tmp_path):
    large = next(iter(FILES))
    server.files[large] = FILES[large] + bytes(2**20)
    findings = Findings()
    assert len(fetch(server, tmp_path, findings=findings, max_file_mib=0.5)) == len(contents(tmp_path)) == 5
    (said,) = findings
    assert said.count == 1 and said.names == (large[2],) and "larger than 0.5 MiB (dicom.max_file_mib)" in str(said)
    assert len(fetch(server, tmp_path)) == 6


def test_studies_without_an_image_are_not_asked_for_without_end(server, tmp_path):
    server._studies = lambda self, query: [f"1.4.{int(query['offset'][0]) + n}" for n in range(2)]
    server.files = {}
    with pytest.raises(DataError, match="more than 5 studies") as caught:
        fetch(server, tmp_path, max_files=5)
    assert "max_files" in caught.value.remedy and len(server.asked) == 3 + 5


def test_an_answer_of_lists_in_lists_is_not_dicom_json(tmp_path):
    deep = type("Deep", (archive.Archive,), {"_list": lambda self, entries: self._send(200, b"[" * 200_000, "x")})
    with pytest.raises(DataError, match="not DICOM JSON"):
        fetch(deep, tmp_path)


def test_an_answer_that_drips_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.undo()
    server.files = {next(iter(FILES)): next(iter(FILES.values()))}
    server.slow_s = 0.05
    began, findings = time.monotonic(), Findings()
    assert fetch(server, tmp_path, findings=findings, timeout_s=0.5, retries=0) == []
    assert time.monotonic() - began < 10 and "longer than 0.5 s" in str(next(iter(findings)))


def test_token_and_tls_and_proxy(server, tmp_path):
    authority = make_authority(tmp_path / "ca")
    certificate, key = authority.issue_server(["localhost"], ["127.0.0.1"], tmp_path / "tls")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.token = "opensesame"
    token = tmp_path / "token"
    token.write_text("opensesame\n")
    token.chmod(0o600)
    proxy = type("OwnProxy", (Proxy,), {"asked": []})
    with serving(server, context) as address, serving(proxy) as way:
        url = f"https://{address}/dicom-web"
        ca = str(authority.certificate_path)
        assert len(fetch(server, tmp_path, url=url, ca=ca, token_file=str(token), proxy=f"http://{way}")) == 6
        assert proxy.asked and set(proxy.asked) == {address}
        with pytest.raises(CredentialError, match="401") as caught:
            fetch(server, tmp_path, url=url, ca=ca)
        assert "token_file" in caught.value.remedy
        with pytest.raises(MachineError, match="no connection"):  # a CA of this machine did not sign it
            fetch(server, tmp_path, url=url, token_file=str(token))
    token.chmod(0o644)
    with pytest.raises(CredentialError, match="others may read"):
        Archive("https://x", DicomWebConfig(token_file=str(token)))


def test_a_redirect_is_not_followed(server, tmp_path):
    server.moved = True
    server.token = ""
    with pytest.raises(MachineError, match="redirect is not followed"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("uid", ["../../etc/passwd", "", "1.2?x=1", "1" * 65, 7])
def test_an_identifier_that_is_none_leads_nowhere(server, tmp_path, uid):
    server.files = {(uid, "1.5.1", "1.3.1"): b""}
    with pytest.raises(DataError, match="usable identifier"):
        fetch(server, tmp_path)


def test_an_archive_without_images_and_one_that_is_none(server, tmp_path):
    server.files = {}
    with pytest.raises(DataError, match="no image for this query"):
        fetch(server, tmp_path)
    page = type("Page", (archive.Archive,), {"asked": [], "_list": lambda self, entries: self._send(200, b"<a>", "x")})
    with pytest.raises(DataError, match="not DICOM JSON"):
        fetch(page, tmp_path)
    with pytest.raises(MachineError, match="no connection"):
        fetch(server, tmp_path, url="http://127.0.0.1:9/dicom-web")


@pytest.mark.parametrize(
    ("url", "config", "error"),
    [
        ("http://pacs.example.org/x", {}, ConfigError),
        ("https://me:secret@pacs.example.org/x", {}, UsageError),
        ("https://:secret@pacs.example.org/x", {}, UsageError),
        ("https://@pacs.example.org/x", {}, UsageError),
        ("https://pacs.example.org/x?y=1", {}, UsageError),
        ("https://pacs.example.org", {"query": ["Modality"]}, ConfigError),
        ("https://pacs.example.org", {"query": ["Modality=CR&limit=9"]}, ConfigError),
        ("https://pacs.example.org", {"ca": "/nowhere.pem"}, CredentialError),
        ("https://pacs.example.org", {"token_file": "/nowhere"}, CredentialError),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_sent(url, config, error):
    with pytest.raises(error) as caught:
        Archive(url, DicomWebConfig(**config))
    assert "secret" not in str(caught.value) and caught.value.remedy is not None


def test_the_same_query_has_the_same_folder(tmp_path):
    def folder(url, *query):
        return download_folder(tmp_path, url, DicomWebConfig(query=list(query)))

    assert folder("https://x/a", "A=1", "B=2") == folder("https://x/a/", "B=2", "A=1")
    assert folder("https://x/a", "A=1") != folder("https://x/a", "A=2")


def test_the_first_part_of_an_answer():
    kind = 'multipart/related; boundary="b"; type="application/dicom"'
    assert first_part(b"--b\r\nX: y\r\n\r\nbody\r\n\r\n--b--", kind) == b"body\r\n"
    assert first_part(b"--b\r\nX: y\r\n\r\nbo", kind) is None
    assert first_part(b"--b\r\nX: y\r\n\r\nbody\r\n--b--", "multipart/related") is None


def test_another_client_finds_the_same_in_this_archive(server):
    """dicomweb-client, a program of others, reads what the tests serve: the archive is one."""
    from dicomweb_client.api import DICOMwebClient

    with serving(server) as address:
        client = DICOMwebClient(f"http://{address}/dicom-web")
        client._session.trust_env = False
        assert len(client.search_for_studies(limit=100)) == 4
        found = client.retrieve_instance("1.4.0", "1.5.1", "1.3.1")
    assert found.SOPInstanceUID == "1.2.3.1"
