"""Every benchmark still runs, and says both sides of what it compares.

Speed itself is not asserted here: the machine is shared, and the tables are small. What would
catch a collapse is: nothing is a hundred times worse than it is to be.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.all import SCRIPTS
from benchmarks.lines import HEAD, Line
from benchmarks.profiles import IDLE, PARTS
from tests.conftest import ROOT

STDLIB = Path(os.__file__).parent

N_COLUMNS = len(HEAD.splitlines()[0].strip("| ").split(" | "))


def cells(line: Line) -> list[str]:
    """What a reader of the table sees in its columns (GitHub Flavored Markdown, section 4.10)."""
    return re.split(r"(?<!\\)\|", line.markdown())[1:-1]


def lines(name: str) -> list[Line]:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [Line(**json.loads(line)) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_both_sides(name):
    found = lines(name)
    assert found
    for line in found:
        assert line.ours > 0 and math.isfinite(line.ours), line
        assert math.isfinite(line.value), line
        assert (line.against > 0) == bool(line.against_what), line
        assert len(cells(line)) == N_COLUMNS, line
        if line.wanted:
            sign, bound = line.wanted.split()
            if sign == ">=":
                assert line.value > float(bound) / 100, line


def test_a_note_stays_in_its_cell():
    query = "SELECT attname, quote_ident(nspname) ||\n  '.' || relname"
    found = cells(Line("a|b", 1, 2, "s", note=f"most for {query}"))
    assert len(found) == N_COLUMNS
    assert found[0].strip() == r"a\|b"
    assert (
        found[-1].strip() == r"most for SELECT attname, quote_ident(nspname) \|\| '.' \|\| relname"
    )


def test_every_script_is_in_the_table():
    folder = Path(ROOT) / "benchmarks"
    ended_by_main = {
        p.stem for p in folder.glob("*.py") if "main(measure, __doc__)" in p.read_text()
    }
    assert ended_by_main == {*SCRIPTS, "peers"}  # which installs the peers: not in every run


@pytest.mark.parametrize("file, function", [*PARTS.values(), *sorted(IDLE)])
def test_the_parts_of_a_profile_exist(file, function):
    """A part of another name would count as nothing."""
    places = [*ROOT.glob(f"astra/*/{file}"), *ROOT.glob(f"benchmarks/{file}"), STDLIB / file]
    texts = [path.read_text() for path in places if path.exists()]
    assert any(re.search(rf"def {function}\b", text) for text in texts)
