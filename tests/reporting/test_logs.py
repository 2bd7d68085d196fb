"""Logs are sentences on a terminal and one JSON object a line otherwise."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from fed_diffmic.reporting.logs import set_up_logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def root_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_where_nobody_reads_along(tmp_path: Path) -> None:
    out, file = io.StringIO(), tmp_path / "log.jsonl"
    set_up_logs(file=file, stream=out)
    logger = logging.getLogger("fed_diffmic.test")
    logger.info("round %d\nsecond line", 3, extra={"site": "Süd"})
    try:
        raise ValueError("why")
    except ValueError:
        logger.exception("failed")
    for text in (out.getvalue(), file.read_text()):
        first, second = (json.loads(line) for line in text.splitlines())
        assert (first["level"], first["message"], first["site"]) == ("info", "round 3\nsecond line", "Süd")
        assert first["time"].endswith("+00:00")
        assert "ValueError: why" in second["detail"]
    assert file.stat().st_mode & 0o777 == 0o600


def test_sentences_on_a_terminal_and_no_handler_twice() -> None:
    out = Terminal()
    set_up_logs(stream=io.StringIO())
    set_up_logs(stream=out)
    logging.getLogger("a").info("connected")
    logging.getLogger("a").warning("the clock")
    logging.getLogger("flwr").info("not for people")
    lines = out.getvalue().splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["connected", "warning: the clock"]
