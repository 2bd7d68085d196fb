"""A consortium that the commands made."""

import io
from pathlib import Path

import pytest

from tests.commands.provisioning import Consortium


@pytest.fixture
def consortium(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    consortium = Consortium(capsys)
    consortium.runs("ca", "ca", "--name", "Skin consortium")
    consortium.runs("server", "coordinator", "--ca", "ca", "--name", "fl.example.org", "--address", "10.0.0.1")
    config = Path("coordinator/server.yaml")
    text = config.read_text().replace("classes: null", "classes: [benign, malignant]")
    config.write_text(text.replace("task: null", "task: multiclass"))
    return consortium
