"""Does the coordinator know this key? Asked as a SuperNode would ask, without becoming one.

The request is signed as Flower's are and announces a body larger than the guard takes: who is not admitted is told
so by the reason, who is admitted by "too large". Nothing reaches the SuperLink, so that a client that runs with
the same key is not disturbed.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from fed_diffmic.transport.guard import REASON_HEADER, VERSIONS_HEADER

ADMITTED, UNKNOWN = "admitted", "unknown"
_TOO_LARGE = 10**14  # bytes; 15 digits are what the guard reads
_PATH = "/v1/fleet/pull-messages"


def probe(
    address: str,
    key: ec.EllipticCurvePrivateKey,
    context: ssl.SSLContext | None,
    *,
    proxy: str | None = None,
    timeout_s: float = 10.0,
) -> str:
    """Ask.

    Args:
        address: ``host:port`` of the public listener.
        key: the site's private key; it signs the present time.
        context: trusts the consortium's CA; none: no TLS.
        proxy: ``http://host:port``, or none.
        timeout_s: for each step.

    Returns:
        ``admitted``; why not: ``roster``, ``signature``, ``clock``; or ``unknown`` (not our kind of coordinator).

    Raises:
        OSError: it cannot be reached.
    """
    stamp = datetime.now(UTC).isoformat()
    headers = {
        FLEET_HTTP_PUBLIC_KEY_HEADER: base64.b64encode(public_key_to_bytes(key.public_key())).decode("ascii"),
        FLEET_HTTP_SIGNATURE_HEADER: base64.b64encode(sign_message(key, stamp.encode("ascii"))).decode("ascii"),
        TIMESTAMP_HEADER: stamp,
        "Content-Length": str(_TOO_LARGE),
        "Connection": "close",
    }
    connection = _connection(address, context, proxy, timeout_s)
    try:
        connection.request("POST", _PATH, headers=headers)
        answer = connection.getresponse()
        if answer.status == 413:
            return ADMITTED
        reason = answer.getheader(REASON_HEADER.decode())
        return reason if answer.status == 401 and reason else UNKNOWN
    except HTTPException as error:
        raise OSError(f"no answer in HTTP ({type(error).__name__})") from error
    finally:
        connection.close()


def _connection(address: str, context: ssl.SSLContext | None, proxy: str | None, timeout_s: float) -> HTTPConnection:
    target = urlsplit(f"//{address}")
    through = urlsplit(proxy) if proxy else target
    host, port = str(through.hostname), through.port
    if context is None:
        connection = HTTPConnection(host, port, timeout=timeout_s)
    else:
        connection = HTTPSConnection(host, port, timeout=timeout_s, context=context)
    if proxy:
        connection.set_tunnel(str(target.hostname), target.port)
    return connection


def versions_of(headers: Mapping[str, str]) -> dict[str, str]:
    """What the answer of a health page says of the coordinator's installation: versions by package, or nothing.

    Args:
        headers: of the answer; names in any case.
    """
    wanted = VERSIONS_HEADER.decode()
    said = next((value for name, value in headers.items() if name.lower() == wanted), "")
    return dict(part.split("=", 1) for part in said.split() if part.count("=") == 1)
