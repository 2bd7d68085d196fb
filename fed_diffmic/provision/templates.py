"""The configuration files that a coordinator and a site start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fed_diffmic.provision.kit import Kit


def server_yaml(folder: Path, host: str, port: int, passphrase: Path | None = None) -> str:
    """A ``server.yaml`` over the files that ``provision server`` wrote.

    Args:
        folder: where they lie, absolute.
        host: address to bind.
        port: public port.
        passphrase: file of what opens the two private keys; none: they lie open.
    """
    return f"""\
# The coordinator, as `fed-diffmic provision server` wrote it. `fed-diffmic options flower-server` explains every key.
model: compact
stages: compact
strategy: fedavg

consortium:
  # What every site must agree to. Say it before you make kits: it travels with them. For example:
  # classes: [benign, malignant]
  # task: multiclass
  classes: null
  task: null

listen:
  # Address to bind: 127.0.0.1 is this machine only, 0.0.0.0 every network that it is in.
  host: {_text(host)}
  port: {port}

security:
  certificate: {_text(folder / "server.crt")}
  key: {_text(folder / "server.key")}
  ca: {_text(folder / "ca.crt")}
  roster: {_text(folder / "roster.json")}
  signing_key: {_text(folder / "signing.key")}
{_opened_by(passphrase)}"""


def site_yaml(kit: Kit, folder: Path, key: Path, data: Path | None, passphrase: Path | None = None) -> str:
    """A ``site.yaml`` over the files that ``provision open-kit`` wrote.

    Args:
        kit: the opened kit.
        folder: where they lie, absolute.
        key: the site's private key, absolute.
        data: the site's table or its folder, if it was given.
        passphrase: file of what opens the key; none: it lies open, or the service is handed its passphrase.
    """
    return f"""\
# Site {kit.site}, from the kit of {kit.made}. This file is the site's own: the coordinator neither sees nor changes it.
# `fed-diffmic options client` explains every key. Check it with: fed-diffmic preflight --config FILE
site:
  name: {_text(kit.site)}
  # Kept updates, audit log, findings: holds or derives from patients' data. Put it on an encrypted volume.
  folder: {_text(folder / "state")}
  # auto, cpu, cuda, cuda:N or mps
  device: auto
  split_seed: {kit.seed}

coordinator:
  address: {_text(kit.address)}
  ca: {_text(folder / "ca.crt")}
  key: {_text(key)}
{_opened_by(passphrase)}  public_key: {_text(folder / "coordinator.pub")}
  # If the way out leads through a proxy:
  # proxy: http://proxy.example.org:3128

dataset:
  # table: image,label[,patient_id,institution,split]; `fed-diffmic options dataset` lists the other layouts.
  name: table
  # The table (a CSV file) or the folder that holds it.
  root: {"null" if data is None else _text(data)}
  # What the consortium predicts, from the kit: names and order must be the same everywhere.
  classes: {"null" if kit.classes is None else _names(kit.classes)}
  task: {kit.task or "null"}

# `closed` lets nothing be asked and nothing leave. When those responsible have agreed, name what may, for example:
#
# policy:
#   name: standard
#   runs: ["name of the run"]
#   datasets: [table]
#   classes: {_names(kit.classes or ["*"])}
#
# `fed-diffmic policy explain --config FILE` says in sentences what the policy allows.
policy: closed
"""


def _opened_by(passphrase: Path | None) -> str:
    return "" if passphrase is None else f"  key_passphrase: {_text(passphrase.absolute())}\n"


def _text(value: object) -> str:
    """A YAML string, quoted: JSON's form is one."""
    return json.dumps(str(value), ensure_ascii=False)


def _names(values: list[str]) -> str:
    return "[" + ", ".join(_text(value) for value in values) + "]"
