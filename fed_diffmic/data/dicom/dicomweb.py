"""Fetch images of an archive over DICOMweb (PS3.18: QIDO-RS finds them, WADO-RS gives them) into a folder of the site.

Only what is asked for is fetched, within a bound on files, bytes and time. A file appears under its name when all of
it is there (never torn), and is not fetched again when the same download is continued. The names of files are digests:
a listing of the folder tells nothing.

An archive gives as many entries of a list as it likes, and need not say that there are more (PS3.18, 8.3.4.4: a limit
of its own may be smaller than the one asked for). A list is therefore asked for until nothing new comes, and the images
of a study are compared with the number that the archive itself states.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fed_diffmic.config.dicom import DicomConfig, DicomWebConfig
from fed_diffmic.data.dicom.multipart import first_part
from fed_diffmic.data.dicom.reasons import is_dicom
from fed_diffmic.data.dicom.sources import Item
from fed_diffmic.data.dicom.web_access import checked_url, tls_context, token_of
from fed_diffmic.data.findings import Findings
from fed_diffmic.errors import ConfigError, CredentialError, DataError, MachineError
from fed_diffmic.files import atomic_write, private_folder

STUDY, SERIES, SOP, CLASS = "0020000D", "0020000E", "00080018", "00080016"
IMAGES = "00201208"
"""Number of Study Related Instances, which QIDO-RS gives with each study."""

_UID = re.compile(r"[0-9.]{1,64}")
_MOST_LIST = 64 * 2**20  # bytes of one answer of a query
_AROUND = 64 * 2**10  # bytes of an answer beside the file that it holds
_MIB = 2**20
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_IN_A_ROW = 3  # images that failed in spite of every try: from there on each is asked for once

Progress = Callable[[str, int, int], None]


class Failed(Exception):  # noqa: N818 - never leaves this module
    """One request that failed for good; the text holds no name.

    Attributes:
        unreachable: there was not even a connection.
        tried: it was asked for again, in vain.
    """

    def __init__(self, why: str, *, unreachable: bool = False, tried: bool = False) -> None:
        super().__init__(why)
        self.unreachable, self.tried = unreachable, tried


@dataclass(frozen=True)
class Instance:
    """An image of the archive, by its identifiers."""

    study: str
    series: str
    sop: str

    @property
    def path(self) -> str:
        """Where WADO-RS gives it."""
        return f"studies/{self.study}/series/{self.series}/instances/{self.sop}"

    @property
    def file(self) -> str:
        """Name of the fetched file."""
        return f"{hashlib.sha256(self.path.encode()).hexdigest()[:40]}.dcm"


def is_url(source: str) -> bool:
    """Whether a source is the address of an archive."""
    return source.lower().startswith(("http://", "https://"))


def download_folder(private: Path, url: str, config: DicomWebConfig) -> Path:
    """The folder of one download: that of the same address and the same query is the same."""
    named = "\0".join([url.rstrip("/"), *sorted(config.query)])
    return private / "downloads" / hashlib.sha256(named.encode()).hexdigest()[:24]


class Archive:
    """An archive that answers QIDO-RS and WADO-RS.

    Args:
        url: of the service, ending where ``/studies`` begins.
        config: group ``dicom.web``.
        max_file_mib: of one file, which is in memory while it is fetched (``dicom.max_file_mib``).

    Raises:
        ConfigError: the address or the query cannot be used.
        CredentialError: the token or the certificate cannot be read.
    """

    def __init__(self, url: str, config: DicomWebConfig, max_file_mib: float = DicomConfig.max_file_mib) -> None:
        self.url, self.config, self.max_file_mib = checked_url(url, config), config, max_file_mib
        headers = {"User-Agent": "fed-diffmic"}
        if config.token_file is not None:
            headers["Authorization"] = f"Bearer {token_of(Path(config.token_file))}"
        try:
            self._client = httpx.Client(
                verify=tls_context(config.ca),
                proxy=config.proxy,
                trust_env=False,
                follow_redirects=False,
                headers=headers,
                timeout=httpx.Timeout(config.timeout_s, connect=min(30.0, config.timeout_s)),
            )
        except (ValueError, OSError) as error:
            raise ConfigError("dicom.web.proxy", config.proxy, "http://host:port") from error

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def fetch(self, folder: Path, findings: Findings, progress: Progress | None = None) -> list[Item]:
        """Fetch what the query finds; what an earlier, interrupted call fetched is not fetched again.

        Returns:
            The files, in the order in which the archive names them.

        Raises:
            DataError: the archive has nothing, or more than the bounds allow; it answers otherwise than DICOMweb.
            CredentialError: it refuses the token.
            MachineError: it cannot be reached (any more), or there is no space; what was fetched is kept.
        """
        report = progress or (lambda what, done, total: None)
        for torn in private_folder(private_folder(folder.parent) / folder.name).glob(".*.part"):
            torn.unlink()
        wanted = self._instances(findings)
        there = {path.name: path.stat().st_size for path in folder.glob("*.dcm")}
        used = sum(there.get(name, 0) for name in {one.file for one in wanted})
        items: list[Item] = []
        failed: list[tuple[str, str]] = []
        in_vain = 0
        for place, one in enumerate(wanted):
            path = folder / one.file
            if one.file not in there:
                try:
                    tries = 1 if in_vain >= _IN_A_ROW else self.config.retries + 1
                    data = self._retrieve(one, int(self.config.max_mib * _MIB) - used, tries)
                except Failed as error:
                    in_vain = in_vain + 1 if error.tried else 0
                    if error.unreachable and in_vain >= _IN_A_ROW:
                        raise _lost(str(error), len(items), len(wanted)) from None
                    failed.append((one.sop, str(error)))
                    continue
                in_vain = 0
                atomic_write(path, data, mode=0o600)
                used += len(data)
                there[one.file] = len(data)
            items.append(Item(path, one.sop))
            report("fetching", place + 1, len(wanted))
        for why in sorted({why for _, why in failed}):
            names = [sop for sop, reason in failed if reason == why]
            findings.add(
                "not-fetched", "warning", f"{len(names)} images left out: {why}", count=len(names), names=names
            )
        return items

    def _instances(self, findings: Findings) -> list[Instance]:
        """Every instance of every study that the query finds, each once, within the bound on files."""
        found: dict[str, Instance] = {}
        params = {name: value for name, _, value in (part.partition("=") for part in self.config.query)}
        cut: list[str] = []
        absent: dict[str, int] = {}
        for number, entry in enumerate(self._pages("studies", params, STUDY, cut), 1):
            if number > self.config.max_files:  # studies without an image would be asked for without end
                raise DataError(
                    f"the archive names more than {self.config.max_files:,} studies for this query, "
                    f"and {len(found):,} files in them",
                    "Ask for less (dicom.web.query), or raise dicom.web.max_files.",
                )
            study, stated, named = _uid(entry, STUDY), _images_of(entry), 0
            for image in self._pages(f"studies/{study}/instances", {}, SOP, cut, stated):
                named += 1
                series, sop = _uid(image, SERIES), _uid(image, SOP)
                found.setdefault(sop, Instance(study, series, sop))
                if len(found) > self.config.max_files:
                    raise DataError(
                        f"the archive holds more than {self.config.max_files:,} files for this query",
                        "Ask for less (dicom.web.query), or raise dicom.web.max_files.",
                    )
            if named < stated:
                absent[study] = stated - named
        _say_incomplete(cut, absent, self.config.page, findings)
        if not found:
            raise DataError(
                "the archive has no image for this query",
                "Compare dicom.web.query with what the archive holds, for example "
                "dicom.web.query=[Modality=CR,StudyDate=20240101-20241231].",
            )
        return list(found.values())

    def _pages(
        self, path: str, params: dict[str, str], tag: str, cut: list[str], stated: int = 0
    ) -> Iterator[dict[str, Any]]:
        """The entries of a list, each once by its identifier ``tag``, asked for until a page brings nothing new.

        Args:
            path, params: what is asked for.
            tag: of the identifier.
            cut: takes the path of a list that may go on and cannot be asked for what follows.
            stated: entries that there are, by the archive's own word; 0: it does not say. It spares the last question.
        """
        seen: set[str] = set()
        given, page = 0, self.config.page
        while True:
            entries = self._listed(path, {**params, "limit": str(page), "offset": str(given)})
            fresh = {uid: entry for entry in entries if (uid := _uid(entry, tag)) not in seen}
            yield from fresh.values()
            if not fresh:
                if given and len(entries) == page:  # it knows limit and not offset
                    cut.append(path)
                return
            seen.update(fresh)
            given += len(entries)
            if stated and len(entries) < page and len(seen) >= stated:
                return

    def _listed(self, path: str, params: dict[str, str]) -> list[dict[str, Any]]:
        try:
            status, _, body = self._get(path, "application/dicom+json", _MOST_LIST, params, self.config.retries + 1)
            if status == 204 or not body:
                return []
            entries = httpx.Response(200, content=body).json()
        except Failed as error:
            raise MachineError(
                f"the archive does not answer a query: {error}",
                "Check the address, the proxy and the archive; then go on.",
            ) from None
        except OverflowError:
            raise DataError(
                f"the archive's answer to a query takes more than {_MOST_LIST // _MIB} MiB",
                "Ask for less (dicom.web.query), or for fewer entries at a time (dicom.web.page).",
            ) from None
        except (ValueError, RecursionError):  # no JSON, or lists in lists in lists
            entries = None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(
                "the archive's answer to a query is not DICOM JSON",
                "Name the address of its DICOMweb service, which ends where /studies begins.",
            )
        return entries

    def _retrieve(self, one: Instance, left: int, tries: int) -> bytes:
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        if left <= 0:
            raise self._too_much()
        most = min(left, int(self.max_file_mib * _MIB) + _AROUND)
        try:
            _, kind, body = self._get(one.path, accept, most, {}, tries)
        except OverflowError:
            if most < left:
                raise Failed(f"larger than {self.max_file_mib:,g} MiB (dicom.max_file_mib)") from None
            raise self._too_much() from None
        data = first_part(body, kind) if kind.lower().startswith("multipart/") else body
        if data is None or not is_dicom(data):
            raise Failed("the archive's answer holds no DICOM file")
        return data

    def _too_much(self) -> DataError:
        return DataError(
            f"the images of this query take more than {self.config.max_mib:,.0f} MiB",
            "Ask for less (dicom.web.query), or raise dicom.web.max_mib; what was fetched is kept.",
        )

    def _get(self, path: str, accept: str, most: int, params: dict[str, str], tries: int) -> tuple[int, str, bytes]:
        """One answer, asked for up to ``tries`` times.

        Raises:
            Failed: every try failed, or the archive says that it will not.
            OverflowError: more than ``most`` bytes.
            CredentialError: the archive refuses who asks.
        """
        why, unreachable = "", False
        for attempt in range(tries):
            if attempt:
                time.sleep(min(30.0, 2.0 ** (attempt - 1)))
            unreachable = False
            try:
                return self._once(path, accept, most, params)
            except httpx.TransportError as error:
                why = f"no connection ({type(error).__name__})"
                unreachable = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError))
            except TimeoutError:
                why = f"the answer took longer than {self.config.timeout_s:g} s"
            except ConnectionResetError as error:
                why = str(error)
        raise Failed(why, unreachable=unreachable, tried=True)

    def _once(self, path: str, accept: str, most: int, params: dict[str, str]) -> tuple[int, str, bytes]:
        until = time.monotonic() + self.config.timeout_s
        request = self._client.stream(
            "GET", f"{self.url}/{path}", headers={"Accept": accept, "Accept-Encoding": "identity"}, params=params
        )
        with request as answer:
            status = answer.status_code
            if status in (401, 403):
                raise CredentialError(
                    f"the archive refuses access (HTTP {status})",
                    "Put a token that it takes into dicom.web.token_file.",
                )
            if status in _AGAIN:
                raise ConnectionResetError(f"the archive answers HTTP {status}")
            if not 200 <= status < 300:
                moved = "; a redirect is not followed, name the address that it leads to" if 300 <= status < 400 else ""
                raise Failed(f"the archive answers HTTP {status}{moved}")
            parts, size = [], 0
            for part in answer.iter_raw():
                size += len(part)
                if size > most:
                    raise OverflowError
                if time.monotonic() > until:
                    raise TimeoutError
                parts.append(part)
        return status, answer.headers.get("content-type", ""), b"".join(parts)


def _lost(why: str, there: int, wanted: int) -> MachineError:
    return MachineError(
        f"the archive can no longer be reached: {why}; {there:,} of {wanted:,} files are here",
        "Check the network, the proxy and the archive; the same command then goes on with the rest.",
    )


def _say_incomplete(cut: list[str], absent: dict[str, int], page: int, findings: Findings) -> None:
    """What an archive holds and does not name, as far as it can be known.

    Args:
        cut: lists that may go on.
        absent: study to the images that it states and does not name.
        page: entries asked for at a time.
    """
    if cut:
        findings.add(
            "archive-list-cut",
            "warning",
            f"the archive gives the first {page} entries of {len(cut)} lists again where the next are asked for; there "
            "may be more, which are not fetched",
            count=len(cut),
            names=cut,
            remedy="Raise dicom.web.page above the number of studies and of images of a study, or ask for less "
            "(dicom.web.query).",
        )
    if absent:
        findings.add(
            "archive-names-fewer",
            "warning",
            f"the archive says that {len(absent)} studies hold {sum(absent.values())} images more than it names; they "
            "are not fetched",
            count=sum(absent.values()),
            names=absent,
            remedy="Ask the archive's administrator how many entries it gives at a time, and whether you may see all.",
        )


def _images_of(entry: dict[str, Any]) -> int:
    """How many images a study has, as the archive states; 0 where it does not."""
    element = entry.get(IMAGES)
    values = element.get("Value") if isinstance(element, dict) else None
    try:
        return max(0, int(values[0])) if isinstance(values, list) and values else 0
    except (TypeError, ValueError, OverflowError):
        return 0


def _uid(entry: dict[str, Any], tag: str) -> str:
    """An identifier of an entry; what is none would lead elsewhere in an address."""
    element = entry.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    uid = values[0] if isinstance(values, list) and values else ""
    if not isinstance(uid, str) or not _UID.fullmatch(uid):
        raise DataError(
            f"the archive names an image without a usable identifier ({tag[:4]},{tag[4:]})",
            "Ask the archive's vendor; nothing was fetched for this query.",
        )
    return uid
