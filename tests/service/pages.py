"""The blocks of the README and of the pages of docs, and where they run.

They run in the checkout. Where `BASCULE_BIN` names the `bin` of another environment, as `make wheel` does,
they run with what is installed there alone.
"""

import os
import re
import sys
from itertools import pairwise

import pytest
from tests.served import ROOT

IS_WHEEL = "BASCULE_BIN" in os.environ
BINARIES = ROOT / os.environ["BASCULE_BIN"] if IS_WHEEL else None
FENCED = r"^```(\w*)\n(.*?)^```$"
FIGURE = r"(\d+\.\d+)"  # ids and counts, which are whole, are compared as they are
INDENTED = r"^    (?! )((?:[^\n]*\\\n)*[^\n]+)$"
RUN = ("bash", "sh", "python", "yaml", "sql")
SHOWN = ("", "text", "ini", "caddy", "nginx")  # drawings, printed answers, files of other programs


def read_page(name):
    return (ROOT / name).read_text(encoding="utf-8")


def list_blocks(name):
    """Return (kind, text) of every fenced block of a page that runs, in their order."""
    blocks = re.findall(FENCED, read_page(name), re.DOTALL | re.MULTILINE)
    return [(kind, text) for kind, text in blocks if kind in RUN]


def list_steps(name):
    """Return the same with the indented lines of commands between them."""
    found = re.findall(f"{FENCED}|{INDENTED}", read_page(name), re.DOTALL | re.MULTILINE)
    steps = [("bash", line) if line else (kind, block) for kind, block, line in found]
    return [(kind, text) for kind, text in steps if kind in RUN]


def list_answers(name):
    """Return text -> printed answer of every block of a page that one follows."""
    page = read_page(name)
    fenced = re.finditer(FENCED, page, re.DOTALL | re.MULTILINE)
    return {
        block[2]: answer[2]
        for block, answer in pairwise(fenced)
        if answer[1] == "text" and block[1] in RUN and page[block.end() : answer.start()].isspace()
    }


def check_printed(fresh, stored):
    """Let two answers differ in the last digits of their figures alone, as those of two machines do.

    A figure may be off by 1e-3 of it, or by one of its last digit where that is more.
    """
    parts = [re.split(FIGURE, " ".join(answer.split())) for answer in (fresh, stored)]
    words = [[word.strip() for word in each[::2]] for each in parts]
    assert words[0] == words[1]
    for got, printed in zip(*(each[1::2] for each in parts), strict=True):
        last_digit = 10 ** -len(printed.partition(".")[2])
        assert float(got) == pytest.approx(float(printed), rel=1e-3, abs=1.01 * last_digit)


def list_indented(name):
    """Return the indented lines of a page, each with those that it goes on in."""
    text = re.sub(FENCED, "", read_page(name), flags=re.DOTALL | re.MULTILINE)
    return re.findall(INDENTED, text, re.MULTILINE)


def make_environment(binaries=None):
    """Return the variables with which a page is followed."""
    home = BINARIES or binaries or os.path.dirname(sys.executable)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"PATH": f"{home}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    return variables if IS_WHEEL else variables | {"PYTHONPATH": str(ROOT)}
