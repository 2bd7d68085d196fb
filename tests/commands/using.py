"""How commands are called, and tables read that they print."""

import re

from fed_diffmic.cli import main


def fails(capsys, *arguments, code=2):
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err and (out == "" or code == 3)
    return err


def cells(out):
    """The table's rows, each cell's folded lines joined."""
    rows, open_row = [], None
    for line in out.splitlines():
        if not line.startswith(("│", "┃")):
            open_row = None
            continue
        parts = [part.strip() for part in re.split("[│┃]", line)[1:-1]]
        if open_row is not None and "" in parts[1:]:
            open_row[:] = [a + b for a, b in zip(open_row, parts, strict=True)]
        else:
            open_row = parts
            rows.append(open_row)
    return rows
