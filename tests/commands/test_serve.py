"""``fed-diffmic serve`` as a process: what it listens on, what it refuses to serve, TLS and token, its end."""

import os
import re
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from fed_diffmic.cli import main
from fed_diffmic.provision.keys import load_private, make_site_key
from fed_diffmic.release.final import write_final
from tests.inference.tiny import draw_images, tiny_model, tiny_spec, write_tiny_run

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_tiny_run(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    """A run whose model its coordinator signed, and the public key's file."""
    folder = tmp_path_factory.mktemp("signed") / "run"
    folder.mkdir()
    make_site_key(folder.parent / "coordinator.key")
    write_final(folder, tiny_model(tiny_spec()), signer=load_private(folder.parent / "coordinator.key"))
    return folder, folder.parent / "coordinator.key.pub"


@pytest.fixture
def served():
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [BIN / "fed-diffmic", "serve", "--port", "0", *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        lines = []
        until = time.monotonic() + 120
        while time.monotonic() < until:
            line = process.stderr.readline()
            lines.append(line)
            found = re.search(r"listening on (\S+)", line)
            if found:
                return process, found[1], "".join(lines)
            if not line:
                break
        pytest.fail("".join(lines))

    yield start
    for process in started:
        process.kill()
        process.wait(20)
        process.stderr.close()


def test_a_signed_model_is_served_on_this_machine_until_a_signal(signed, served, tmp_path):
    folder, public = signed
    process, address, said = served("--model", folder, "--key", public)
    assert address.startswith("http://127.0.0.1:") and re.search(r"signed by the key [0-9-]{30,}", said)
    (image,) = draw_images(tmp_path, 1)
    answer = httpx.post(address + "v1/predict", content=image.read_bytes(), headers={"content-type": "image/png"})
    assert answer.status_code == 200
    assert answer.json()["model"]["signed_by"] in said
    assert "server" not in answer.headers
    port = int(address.rsplit(":", 1)[1].strip("/"))
    listening = Path("/proc/net/tcp").read_text()
    assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) in (0, -signal.SIGTERM, 143)
    assert image.name not in process.stderr.read()


def test_elsewhere_with_tls_and_a_token(run, served, tmp_path, certificate):
    token = tmp_path / "token"
    token.write_text("t" * 40 + "\n")
    token.chmod(0o600)
    _, address, _ = served(
        "--model", run, "--unsigned", "--host", "0.0.0.0", "--name", "reader.example", "--certificate",
        certificate[0], "--tls-key", certificate[1], "--token-file", token,
    )  # fmt: skip
    port = address.rsplit(":", 1)[1].strip("/")
    context = ssl.create_default_context(cafile=str(certificate[0]))
    with httpx.Client(verify=context, base_url=f"https://127.0.0.1:{port}") as client:
        assert client.get("/v1/model").status_code == 401
        told = client.get("/v1/model", headers={"authorization": f"Bearer {'t' * 40}"})
        assert told.json()["signed_by"] == ""
        assert client.get("/health", headers={"host": "reader.example"}).status_code == 200
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 400
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}/health")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of its own for 127.0.0.1, and its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "reader")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "tls.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "tls.key").chmod(0o600)
    return folder / "tls.pem", folder / "tls.key"


def test_an_unsigned_or_another_coordinators_model_is_not_served(run, signed, tmp_path, capsys):
    assert main(["serve", "--model", str(run)]) == 4
    assert "--unsigned" in capsys.readouterr().err
    make_site_key(tmp_path / "other.key")
    assert main(["serve", "--model", str(signed[0]), "--key", str(tmp_path / "other.key.pub")]) == 4
    assert main(["serve", "--model", str(run), "--key", str(signed[1])]) == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--model", "nowhere"], "no such folder"),
        (["--port", "70000"], "--port 70000 is not within"),
        (["--queue", "-1"], "--queue -1 is not within"),
        (["--host", "0.0.0.0"], "needs --certificate and --tls-key and --token-file"),
        (["--certificate", "tls.pem"], "belong together"),
        (["--key", "a.pub", "--unsigned"], "contradict"),
        (["--token-file", "short"], "has 20 letters; 32 are the least"),
        (["--certificate", "short", "--tls-key", "short"], "cannot be used together"),
        (["--port", "1"], "cannot listen on 127.0.0.1:1"),
    ],
)
def test_mistakes_are_said_before_anything_listens(run, given, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("x" * 20 + "\n")
    Path("short").chmod(0o600)
    if given == ["--port", "1"]:
        import socket

        holder = socket.socket()
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        given, said = ["--port", port], f"cannot listen on 127.0.0.1:{port}"
    arguments = ["serve", *given] if "--model" in given else ["serve", "--model", str(run), *given]
    if "--key" not in given and "--unsigned" not in given:
        arguments.append("--unsigned")
    assert main(arguments) != 0
    assert said in capsys.readouterr().err


def test_every_address_needs_a_name(run, tmp_path, certificate, capsys):
    token = tmp_path / "token"
    token.write_text("t" * 40)
    token.chmod(0o600)
    code = main(
        ["serve", "--model", str(run), "--unsigned", "--host", "0.0.0.0", "--certificate", str(certificate[0]),
         "--tls-key", str(certificate[1]), "--token-file", str(token)]
    )  # fmt: skip
    assert code == 2 and "Add --name HOST" in capsys.readouterr().err
