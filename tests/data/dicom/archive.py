"""A small DICOMweb archive for tests: QIDO-RS and WADO-RS over files in memory, with faults on request."""

from __future__ import annotations

import http.server
import json
import time
from typing import ClassVar, TypeVar
from urllib.parse import parse_qs, urlsplit

T = TypeVar("T")


class Archive(http.server.BaseHTTPRequestHandler):
    """Answers for ``files``; subclass it to change what it does.

    Attributes:
        files: (study, series, SOP) to content.
        token: that a request must carry; none: any.
        asked: paths, in order.
        fails: path to how often it still answers 503.
        cut: path of an instance whose answer ends in the middle.
        slow_s: pause before each byte of an instance.
        moved: redirects every query.
        paged: whether ``offset`` and ``limit`` are known.
        offsets: whether ``offset`` is known, where ``paged``.
        most: entries of a list that are given at a time, whatever ``limit`` says.
        states: how many images each study is said to have; none: that is not said.
    """

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[tuple[str, str, str], bytes]] = {}
    token: ClassVar[str] = ""
    asked: ClassVar[list[str]] = []
    fails: ClassVar[dict[str, int]] = {}
    cut: ClassVar[str] = ""
    slow_s: ClassVar[float] = 0.0
    moved: ClassVar[bool] = False
    paged: ClassVar[bool] = True
    offsets: ClassVar[bool] = True
    most: ClassVar[int] = 1000
    states: ClassVar[dict[str, int]] = {}

    def do_GET(self) -> None:
        """Answer one request."""
        url = urlsplit(self.path)
        parts = url.path.strip("/").split("/")[1:]
        type(self).asked.append("/".join(parts))
        if self.token and self.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(401, b"", "text/plain")
        if self.fails.get("/".join(parts), 0):
            self.fails["/".join(parts)] -= 1
            return self._send(503, b"", "text/plain")
        if self.moved:
            self.send_response(302)
            self.send_header("Location", "https://elsewhere.invalid/")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if parts == ["studies"]:
            return self._list([self._study(uid) for uid in self._studies(parse_qs(url.query))])
        if len(parts) == 3 and parts[2] == "instances":
            found = self._page([key for key in self.files if key[0] == parts[1]], parse_qs(url.query))
            return self._list(
                [{"0020000D": _value(a), "0020000E": _value(b), "00080018": _value(c)} for a, b, c in found]
            )
        key = tuple(parts[1::2])
        return self._instance(key) if key in self.files else self._send(404, b"", "text/plain")

    def _study(self, uid: str) -> dict[str, object]:
        said = {"00201208": {"vr": "IS", "Value": [self.states[uid]]}} if uid in self.states else {}
        return {"0020000D": _value(uid), **said}

    def _studies(self, query: dict[str, list[str]]) -> list[str]:
        return self._page(list(dict.fromkeys(study for study, _, _ in self.files)), query)

    def _page(self, entries: list[T], query: dict[str, list[str]]) -> list[T]:
        if not self.paged:
            return entries
        start = int(query.get("offset", ["0"])[0]) if self.offsets else 0
        return entries[start : start + min(self.most, int(query.get("limit", ["100"])[0]))]

    def _instance(self, key: tuple[str, ...]) -> None:
        mark = b"--MARK"
        body = mark + b"\r\nContent-Type: application/dicom\r\n\r\n" + self.files[key] + b"\r\n" + mark + b"--\r\n"
        if self.slow_s:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(self.slow_s)
            return None
        kind = 'multipart/related; type="application/dicom"; boundary=MARK'
        if key[2] == self.cut:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return None
        return self._send(200, body, kind)

    def _list(self, entries: list[dict[str, object]]) -> None:
        self._send(200, json.dumps(entries).encode(), "application/dicom+json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _value(uid: str) -> dict[str, object]:
    return {"vr": "UI", "Value": [uid]}
