"""The first part of a ``multipart/related`` answer (RFC 2387), as WADO-RS sends one instance."""

from __future__ import annotations

import re

_BOUNDARY = re.compile(r'boundary="?([^";]{1,200})"?', re.IGNORECASE)


def first_part(body: bytes, content_type: str) -> bytes | None:
    """Content of the first part; None where the answer is torn or is no such thing.

    A part that is not followed by a boundary was cut off: what there is of it is not given.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        return None
    mark = b"--" + found[1].strip().encode()
    start = 0 if body.startswith(mark) else body.find(b"\r\n" + mark)
    if start < 0:
        return None
    head = body.find(b"\r\n\r\n", start)
    if head < 0:
        return None
    end = body.find(b"\r\n" + mark, head + 4)
    return body[head + 4 : end] if end >= 0 else None
