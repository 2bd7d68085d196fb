"""The way to the coordinator: name, proxy, connection, TLS, health, clock, versions, and whether it knows our key."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version as installed_version
from typing import Any
from urllib.parse import urlsplit

import httpx

from client.clock import TIMEOUT_S, Skew, http_client, measure_skew
from client.preflight.check import Check, failed, passed, warning
from fed_diffmic import __version__
from fed_diffmic.config.site import CoordinatorConfig
from fed_diffmic.provision.keys import PrivateKey
from fed_diffmic.transport.fleet import sentence
from fed_diffmic.transport.probe import ADMITTED, probe, versions_of
from fed_diffmic.transport.supernode import ca_certificates

SOON_DAYS = 30
_FIREWALL = "Ask for an outbound TCP connection to this address and port (docs/hospital-it.md)."
_SILENT = "Ask whether the coordinator runs; a firewall that inspects connections can do this too."
_ADMISSION = {
    "roster": (
        "the coordinator does not admit this site's key",
        "Send the public key to the coordinator (`fed-diffmic provision enrol`), or ask why the site was taken out.",
    ),
    "signature": ("the coordinator does not accept this key's signature", "Make a new key and have it enrolled."),
    "clock": ("the coordinator finds this machine's time wrong", "Have the clock set by NTP."),
}


def check_network(way: CoordinatorConfig, key: PrivateKey | None, timeout_s: float = TIMEOUT_S) -> Iterator[Check]:
    """Every check of the way, in the order of the way; ends at the first that leaves nothing to ask behind it.

    Args:
        way: group ``coordinator``; the address is set.
        key: the site's private key, if it can be read.
        timeout_s: for each step.
    """
    target = urlsplit(f"//{way.address}")
    host, port = str(target.hostname), int(target.port or 0)
    reached = list(_reach(host, port, way.proxy, timeout_s))
    yield from reached
    if any(check.exit_code for check in reached):
        return
    scheme = "http" if way.insecure else "https"
    try:
        with http_client(way, timeout_s) as client:
            answer = client.get(f"{scheme}://{way.address}/health")
    except (httpx.HTTPError, OSError) as error:
        yield _no_answer(error, way)
        return
    if way.insecure:
        yield warning("network.tls", "coordinator.insecure=true: nothing is encrypted and nobody is authenticated")
    else:
        yield passed("network.tls", "the coordinator's certificate is valid, for this address, and signed by our CA")
        if way.proxy is None:
            yield from _certificate_age(host, port, way, timeout_s)
    if answer.status_code != 200:
        yield failed(
            "network.health",
            f"the address answers with status {answer.status_code}, which is not what a coordinator says",
            "Check coordinator.address; ask whether the coordinator runs.",
        )
        return
    yield passed("network.health", "the coordinator answers")
    yield _clock(way)
    yield from _versions(versions_of(answer.headers))
    if key is not None and not way.insecure:
        yield _admission(way, key, timeout_s)


def _reach(host: str, port: int, proxy: str | None, timeout_s: float) -> Iterator[Check]:
    """Name and TCP connection: to the proxy where there is one, which then resolves the coordinator's name."""
    what = "the proxy" if proxy else "the coordinator"
    if proxy:
        through = urlsplit(proxy)
        host, port = str(through.hostname), int(through.port or 0)
    name = "network.proxy" if proxy else "network.connect"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield failed(
            "network.name",
            f"the name of {what}, {host}, cannot be resolved ({error.strerror or error})",
            f"Check coordinator.{'proxy' if proxy else 'address'}; ask for the name in this network's DNS.",
        )
        return
    yield passed("network.name", f"the name of {what}, {host}, is known ({len({f[4][0] for f in found})} address(es))")
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            yield passed(name, f"{what} accepts a connection at {host}:{port}")
    except ConnectionRefusedError:
        yield failed(name, f"nothing listens at {host}:{port}", f"Ask whether {what} runs, and check its port.")
    except OSError as error:
        late = isinstance(error, TimeoutError)
        yield failed(
            name,
            f"{what} at {host}:{port} {'does not answer' if late else f'cannot be reached: {error.strerror}'}",
            _FIREWALL,
        )


def _no_answer(error: Exception, way: CoordinatorConfig) -> Check:
    if isinstance(error, httpx.TimeoutException):
        return failed("network.health", "the coordinator accepts a connection, then says nothing in time", _SILENT)
    text = str(error).lower()
    if any(word in text for word in ("certificate", "ssl", "tls")):
        return failed(
            "network.tls",
            sentence(error),
            "Use the CA of the kit, and the address that the coordinator's certificate names. If a proxy of this "
            "network opens TLS, ask for an exception: its certificate is not the coordinator's.",
        )
    if isinstance(error, httpx.ProxyError):
        return failed("network.proxy", sentence(error), "Ask for CONNECT to the coordinator's address and port.")
    remedy = "Ask whether the coordinator runs." if way.proxy is None else "Ask what the proxy says of this address."
    return failed("network.health", sentence(error), remedy)


def _certificate_age(host: str, port: int, way: CoordinatorConfig, timeout_s: float) -> Iterator[Check]:
    trusted = ca_certificates(way.ca)
    context = ssl.create_default_context(cadata=None if trusted is None else trusted.decode("ascii"))
    with (
        socket.create_connection((host, port), timeout=timeout_s) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        ends = ssl.cert_time_to_seconds(str((connection.getpeercert() or {})["notAfter"]))
    days = (ends - datetime.now(UTC).timestamp()) / 86400
    if days < SOON_DAYS:
        yield warning(
            "network.certificate",
            f"the coordinator's certificate expires in {days:.0f} days",
            "Tell the coordinator: `fed-diffmic provision renew`.",
            days=round(days, 1),
        )
    else:
        yield passed(
            "network.certificate", f"the coordinator's certificate is good for {days:.0f} days", days=round(days)
        )


def _clock(way: CoordinatorConfig) -> Check:
    skew = measure_skew(way)
    if skew is None:
        return warning("network.clock", "the coordinator does not say its time", "Have this clock set by NTP.")
    return clock_check(skew)


def clock_check(skew: Skew) -> Check:
    """What a measured difference of clocks means."""
    facts: dict[str, Any] = {"seconds": round(skew.seconds, 2), "error": round(skew.error, 2)}
    remedy = "Have the clock set by NTP (timedatectl, chronyc tracking)."
    if skew.refused:
        return failed("network.clock", f"{skew}; its signatures are refused", remedy, **facts)
    if skew.near:
        return warning("network.clock", str(skew), remedy, **facts)
    return passed("network.clock", str(skew), **facts)


def _versions(theirs: dict[str, str]) -> Iterator[Check]:
    """Ours against the coordinator's: other numbers of fed_diffmic or flwr may not understand each other."""
    if not theirs:
        yield warning("network.versions", "the coordinator does not say its versions", "Ask for them, and compare.")
        return
    ours = {"fed_diffmic": __version__, "flwr": installed_version("flwr"), "torch": installed_version("torch")}
    other = [f"{name} {ours[name]} here, {theirs[name]} there" for name in ours if theirs.get(name, "") != ours[name]
             and name in theirs]  # fmt: skip
    if not other:
        yield passed("network.versions", "the same versions of " + ", ".join(ours) + " here and there", **ours)
        return
    far = [name for name in ("fed_diffmic", "flwr") if name in theirs and _series(ours[name]) != _series(theirs[name])]
    remedy = "Install the coordinator's versions here (docs/hospital-it.md)."
    if far:
        yield failed("network.versions", "; ".join(other), remedy, exit_code=2, **ours)
    else:
        yield warning(
            "network.versions", "; ".join(other) + ": the final weights may differ in their last bits", remedy
        )


def _series(text: str) -> tuple[str, ...]:
    """Major and minor number."""
    return tuple(text.split("+")[0].split(".")[:2])


def _admission(way: CoordinatorConfig, key: PrivateKey, timeout_s: float) -> Check:
    trusted = ca_certificates(way.ca)
    context = ssl.create_default_context(cadata=None if trusted is None else trusted.decode("ascii"))
    try:
        said = probe(str(way.address), key, context, proxy=way.proxy, timeout_s=timeout_s)
    except OSError as error:
        return warning("network.admission", f"the coordinator was not asked about our key: {sentence(error)}")
    if said == ADMITTED:
        return passed("network.admission", "the coordinator admits this site's key")
    if said in _ADMISSION:
        cause, remedy = _ADMISSION[said]
        return failed("network.admission", cause, remedy, exit_code=2)
    return warning("network.admission", "the coordinator does not say whether it admits this site's key")
