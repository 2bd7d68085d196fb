"""The program that is run when a card is lent works: it is run here at small sizes, on a processor."""

import re
import sys

from benchmarks import card


def test_the_cards_program_prints_every_row_on_a_processor(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["card", "--device", "cpu", "--small"])
    card.main()
    said = capsys.readouterr().out
    assert "failed" not in said and "not measured" not in said, said
    for stage in ("guidance", "diffusion"):
        assert re.search(rf"\| tiny, {stage}, 8 images \| float32 \| [0-9.]+ steps/s", said), said
        assert re.search(rf"\| tiny, {stage}, 8 images \| plain .*\| ghost .*[0-9.]+ times\)", said), said
        assert re.search(rf"\| tiny, {stage}, step of 8 \| float32 \|", said), said
    assert re.search(r"\| tiny, prediction of 4 \| float32 \| .* \| 0\.\d+ \|", said), said


def test_what_there_is_no_time_for_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["card", "--device", "cpu", "--small", "--limit", "0"])
    card.main()
    assert capsys.readouterr().out.count("not measured, 0 s are over") == len(card.parts("cpu", True, lambda: 1.0))


def test_a_part_that_fails_says_why_and_the_others_go_on(monkeypatch, capsys):
    def broken():
        raise RuntimeError("out of memory")

    monkeypatch.setattr(card, "parts", lambda *_: {"first": broken, "second": lambda: print("measured")})
    monkeypatch.setattr(sys, "argv", ["card", "--device", "cpu", "--small"])
    card.main()
    assert re.search("failed: RuntimeError: out of memory.*measured", capsys.readouterr().out, re.DOTALL)
