"""``fed-diffmic serve``: a finished run's model behind HTTP, with a page for a reader."""

from __future__ import annotations

import argparse
import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fed_diffmic.errors import MachineError, ModelFileError, UsageError

if TYPE_CHECKING:
    from fed_diffmic.commands import Add

_ABOUT = """Serve a finished run's model: POST /v1/predict, and a page for a reader at /. No image is kept.

  fed-diffmic serve --model DIR --key COORDINATOR.pub
  fed-diffmic serve --model DIR --key COORDINATOR.pub --host 0.0.0.0 --name reader.hospital.example \\
      --certificate tls.pem --tls-key tls.key --token-file token

The model must be signed by the coordinator. Without --host it listens on this machine alone; elsewhere it needs TLS and
a token, which every request then carries (`Authorization: Bearer TOKEN`).
"""
SHORTEST_TOKEN = 32
_HOW_TO_MAKE = "Make one: `(umask 077; openssl rand -base64 32 > FILE)`"


def register(add: Add) -> None:
    """Add ``serve``."""
    serve = add("serve", _serve, "a run's model behind HTTP, with a page for a reader")
    serve.description = _ABOUT
    serve.add_argument("--model", required=True, type=Path, metavar="DIR", help="folder of a finished run")
    serve.add_argument("--key", type=Path, metavar="PUB", help="the coordinator's public key: it must have signed")
    serve.add_argument("--unsigned", action="store_true", help="serve a model that nobody signed (a simulation's)")
    serve.add_argument("--site", metavar="NAME", help="whose own part of the model to use (fedbn, ditto)")
    serve.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    serve.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", type=int, default=8600, metavar="N", help="0 to 65535 (8600); 0 chooses one")
    serve.add_argument("--name", action="append", default=[], metavar="HOST", help="name by which it is reached")
    serve.add_argument("--certificate", type=Path, metavar="PEM", help="TLS certificate, with its chain")
    serve.add_argument("--tls-key", type=Path, metavar="PEM", help="its private key")
    serve.add_argument("--tls-passphrase-file", type=Path, metavar="FILE", help="opens a locked --tls-key")
    serve.add_argument("--token-file", type=Path, metavar="FILE", help=f"a token of {SHORTEST_TOKEN} or more letters")
    serve.add_argument("--refer", type=float, metavar="SHARE", help="refer so many of the images to a person")
    serve.add_argument("--level", type=float, metavar="SHARE", help="of the prediction sets (0.9)")
    serve.add_argument("--queue", type=int, default=8, metavar="N", help="requests that may wait, 0 to 1000 (8)")
    serve.add_argument("--wait", type=float, default=60.0, metavar="SECONDS", help="longest wait, 1 to 3600 (60)")
    serve.add_argument("--most-mib", type=int, default=32, metavar="N", help="largest image, 1 to 1024 MiB (32)")


def _serve(arguments: argparse.Namespace, hint: list[str]) -> int:
    _check(arguments)
    token = _token(arguments.token_file)
    context = _tls(arguments)
    from fed_diffmic.inference.card import model_card
    from fed_diffmic.inference.finished import predictor_of
    from fed_diffmic.inference.service import ServiceSettings, check_wanted, make_service
    from fed_diffmic.inference.sure import Wanted
    from fed_diffmic.provision.keys import load_public
    from fed_diffmic.release.final import load_final

    final = load_final(arguments.model, public_key=None if arguments.key is None else load_public(arguments.key))
    if not final.signed_by and not arguments.unsigned:
        raise ModelFileError(
            f"the model in {arguments.model} is not signed: nothing says who made it",
            "Take the model that the coordinator signed, and name its key: --key COORDINATOR.pub. To look at a "
            "simulation's model, add --unsigned.",
        )
    given = {"level": arguments.level, "refer": arguments.refer}
    wanted = Wanted(**{name: value for name, value in given.items() if value is not None})
    predictor = predictor_of(final, arguments.model, arguments.site, precision=arguments.precision)
    check_wanted(predictor, wanted)
    settings = ServiceSettings(
        hosts=("127.0.0.1", "localhost", *_reached_as(arguments)),
        token=token,
        most_bytes=arguments.most_mib * 2**20,
        wait_s=arguments.wait,
        queue=arguments.queue,
        wanted=wanted,
    )
    app = make_service(predictor, model_card(final, predictor.fitted), settings)
    return _listen(app, arguments, context, final.origin)


def _listen(app: Any, arguments: argparse.Namespace, context: Any, origin: str) -> int:
    """Serve until a signal comes."""
    import socket

    import uvicorn

    from fed_diffmic.inference.prompt import Prompt

    family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((arguments.host, arguments.port))
        listener.listen()  # who reads the line below and asks at once waits, and is not turned away
    except OSError as error:
        listener.close()
        raise MachineError(
            f"cannot listen on {arguments.host}:{arguments.port}: {error.strerror}",
            "Give another --port, or the --host of this machine.",
        ) from error
    port = listener.getsockname()[1]
    name = f"[{arguments.host}]" if family == socket.AF_INET6 else arguments.host
    print(f"the model is {origin}", file=sys.stderr)
    print(f"listening on {'https' if context else 'http'}://{name}:{port}/", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        app,
        http=Prompt,
        ws="none",
        access_log=False,  # a request may carry what must not be written down
        log_level="warning",
        limit_concurrency=4 * arguments.queue + 64,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ssl_context_factory=None if context is None else lambda *_: context,
        ssl_certfile=arguments.certificate if context else None,
        ssl_keyfile=arguments.tls_key if context else None,
    )
    with listener:
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.model.is_dir():
        raise UsageError(f"--model {arguments.model}: there is no such folder", "Give the folder of a finished run.")
    if arguments.key is not None and arguments.unsigned:
        raise UsageError("--key and --unsigned contradict each other", "Leave one of them out.")
    ranges = {"port": (0, 65535), "queue": (0, 1000), "wait": (1, 3600), "most_mib": (1, 1024)}
    for name, (low, high) in ranges.items():
        if not low <= getattr(arguments, name) <= high:
            raise UsageError(f"--{name.replace('_', '-')} {getattr(arguments, name)} is not within {low} and {high}")
    if (arguments.certificate is None) != (arguments.tls_key is None):
        raise UsageError("--certificate and --tls-key belong together", "Give both, or neither.")
    arguments.host = arguments.host.strip("[]")  # of IPv6, as an address bar has it
    if "/" in arguments.host or (":" in arguments.host and not _is_address(arguments.host)):
        raise UsageError(
            f"--host {arguments.host} is no name and no address", "Give it without http:// and port: --host 127.0.0.1."
        )
    if not _is_loopback(arguments.host):
        needed = {"--certificate and --tls-key": arguments.certificate, "--token-file": arguments.token_file}
        missing = [name for name, given in needed.items() if given is None]
        if missing:
            raise UsageError(
                f"--host {arguments.host} can be reached from elsewhere, which needs {' and '.join(missing)}",
                f"Give them, or leave --host out to serve this machine alone. {_HOW_TO_MAKE}.",
            )


def _is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback if _is_address(host) else host == "localhost"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reached_as(arguments: argparse.Namespace) -> list[str]:
    """Names of the service besides loopback's; an address that means "all" is none."""
    try:
        every = ipaddress.ip_address(arguments.host).is_unspecified
    except ValueError:
        every = False
    if every and not arguments.name:
        raise UsageError(
            f"--host {arguments.host} is every address of this machine, so it does not say by which name it is reached",
            "Add --name HOST, for each name or address that readers type.",
        )
    return [*arguments.name, *([] if every else [arguments.host])]


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    from fed_diffmic.provision.credentials import read_passphrase

    token = read_passphrase(path, kind="token").decode().strip()
    if len(token) < SHORTEST_TOKEN:
        raise UsageError(
            f"--token-file {path}: the token has {len(token)} letters; {SHORTEST_TOKEN} are the least",
            f"{_HOW_TO_MAKE}.",
        )
    return token


def _tls(arguments: argparse.Namespace) -> Any:
    """The TLS context, or none; a key that cannot be used is refused before the model is read."""
    if arguments.certificate is None:
        return None
    import ssl

    from fed_diffmic.provision.credentials import read_credential, read_passphrase

    read_credential(arguments.certificate, "certificate")
    read_credential(arguments.tls_key, "private key", private=True)
    phrase = None if arguments.tls_passphrase_file is None else read_passphrase(arguments.tls_passphrase_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # A function, so that a locked key without a passphrase fails instead of asking at the terminal.
        context.load_cert_chain(arguments.certificate, arguments.tls_key, lambda: phrase or b"")
    except (ssl.SSLError, OSError, ValueError) as error:
        raise UsageError(
            f"--certificate {arguments.certificate} and --tls-key {arguments.tls_key} cannot be used together: "
            f"{getattr(error, 'reason', None) or type(error).__name__}",
            "Give a certificate in PEM and the private key that it was made for; a locked key needs "
            "--tls-passphrase-file.",
        ) from error
    return context
