"""Lists: which plan is meant, which plans are listed, and how tables fit where they go."""

import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from astra.api import run_here
from astra.cli.group import main
from astra.cli.listing import Listing, Terminal
from astra.database.connection import reset
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Plan
from astra.plan.plan import create_plan
from astra.resume.cancel import cancel
from tests.conftest import ROOT, configured_copy
from tests.sample_tasks import costly, fill, measure


def astra(*words: str):
    return CliRunner().invoke(main, list(words))


@pytest.fixture(scope="module")
def archive(sqlite_template, tmp_path_factory) -> Path:
    """1 has failed rows, 2 is whole and somebody else's, 3 is new, 4 is cancelled."""
    folder = tmp_path_factory.mktemp("listing")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASTRA_RUN_DIR", str(folder / "runs"))
        configured_copy(sqlite_template, folder, patch)
        reset()
        make_plans()
        reset()
    return folder / sqlite_template.name


def make_plans() -> None:
    fill(8)
    for task, arguments in ((measure, {"raise_every": 4}), (costly, {})):
        (planned,) = create_plan(task, BossVisitSpectrum, arguments=arguments)
        run_here(planned.plan)
    Plan.update(created_by="somebody").where(Plan.pk == 2).execute()
    fill(4)
    create_plan(measure, BossVisitSpectrum)
    (last,) = create_plan(costly, BossVisitSpectrum)
    cancel(last.plan)
    Plan.update(created="2020-01-01").where(Plan.pk == 1).execute()


@pytest.fixture
def plans(archive, tmp_path, monkeypatch) -> None:
    configured_copy(archive, tmp_path, monkeypatch)


def listed(*words: str) -> list[int]:
    return [p["plan"] for p in json.loads(astra("plans", *words, "--json").stdout)]


def test_plans_are_filtered(plans):
    assert listed() == [4, 3, 2, 1]
    assert listed("--task", "costly") == [4, 2] == listed("--task", "tests.sample_tasks.costly")
    assert listed("--state", "failed rows") == [1] and listed("--state", "whole") == [2]
    assert listed("--state", "cancelled") == [4] and listed("--state", "attention") == [3]
    assert listed("--mine") == [4, 3, 1] and listed("--since", "2021-01-01") == [4, 3, 2]
    assert listed("--since", "1h", "--mine", "--task", "measure") == [3]
    wrong = astra("plans", "--state", "whoel")
    assert wrong.exit_code == 2 and "Did you mean 'whole'" in wrong.output
    assert "12h, 3d" in astra("plans", "--since", "yesterday").output
    several = astra("status", "--task", "measure")
    assert several.exit_code == 4 and re.findall(r"^plan (\d):", several.stdout, re.M) == ["3", "1"]
    assert astra("status", "2", "--mine").exit_code == 2


@pytest.mark.parametrize("words", [("status",), ("failures",), ("logs",), ("verify",)])
def test_what_only_reads_takes_the_last_plan_and_says_so(plans, words):
    Plan.delete().where(Plan.pk.in_([3, 4])).execute()
    done = astra(*words)
    assert "plan 2: the last one" in done.stderr and done.exit_code == 0, done.output
    assert "the last one" not in done.stdout


@pytest.mark.parametrize("verb", ["resume", "retry", "cancel"])
def test_what_changes_something_wants_a_plan_and_names_the_last(plans, verb):
    done = astra(verb)
    assert (
        done.exit_code == 2
        and f"astra {verb} needs the number of a plan; the last is 4" in done.output
    )
    assert "not the number of a plan" in astra(verb, "four").output


def test_rows_of_active_plans_are_left_out_with_the_command_that_shows_them(plans):
    done = astra("plan", "tests.sample_tasks.measure", "--redo", "all")
    assert "of active plan 3: see astra status 3; astra cancel 3" in done.stdout, done.output


def test_csv_is_whole_and_read_by_programs(plans):
    rows = list(csv.DictReader(io.StringIO(astra("plans", "--csv").stdout)))
    assert [row["plan"] for row in rows] == ["4", "3", "2", "1"]
    assert rows[3]["failed"] == "2" and rows[0]["task"] == "tests.sample_tasks.costly"
    failed = list(csv.DictReader(io.StringIO(astra("failures", "1", "--csv").stdout)))
    assert [row["key"] for row in failed] == ["4", "8"]
    assert failed[0]["message"] == "row 4 is bad"
    assert astra("nights", "--csv").stdout.startswith("night,name,state")


def test_csv_keeps_the_commas_of_texts(capsys):
    table = Listing("key>", "rows>", "hours>")
    table.add('["a,b", 7]', 12345, 1234.5)
    table.print(Terminal(), as_csv=True)
    _, row = csv.reader(io.StringIO(capsys.readouterr().out))
    assert row == ['["a,b", 7]', "12345", "1234.50"]
    table.print(Terminal(width=100))
    assert capsys.readouterr().out.endswith('["a,b", 7]  12,345  1,234.50\n')


def test_json_has_no_numbers_that_others_cannot_read(plans):
    def refuse(word: str) -> None:
        raise AssertionError(f"JSON has no {word}")

    create_plan(measure, BossVisitSpectrum, redo="all", arguments={"spin_s": float("nan")})
    run_here(5)
    why = ("why", "tests.sample_tasks.measure", "4", "--input-model", "BossVisitSpectrum")
    history = json.loads(astra(*why, "--json").stdout, parse_constant=refuse)
    assert history["results"][0]["made_by"]["arguments"]["spin_s"] is None


def in_a_terminal(words: str, columns: int, **environ: str) -> list[str]:
    """What a command shows on a terminal of so many columns, line by line."""
    ours, theirs = pty.openpty()
    code = "from astra.__main__ import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words.split()], stdout=theirs, stderr=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONPATH": str(ROOT), **environ},
    )  # fmt: skip
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # the other end was closed
        pass
    process.wait()
    os.close(ours)
    return text.decode().splitlines()


@pytest.mark.parametrize("columns", [0, 60, 80, 200])
def test_a_table_fits_by_leaving_columns_out(plans, columns):
    shown = in_a_terminal("plans", columns, NO_COLOR="1", LANG="C", LC_ALL="C")
    assert not any(re.search(r"\x1b\[3\d", line) for line in shown)
    lines = [re.sub(r"\x1b\[\d*m", "", line) for line in shown]
    assert all(len(line) <= (columns or 80) for line in lines), lines
    assert all(line.isascii() for line in lines), lines
    head = lines[0].split()
    assert head[:2] == ["plan", "task"] and "left" in head
    assert sum("tests.sample_tasks." in line for line in lines) == 4  # no word is folded
    if columns == 200:
        assert "input" in head and "by" in head and "no room" not in "\n".join(lines)
    else:
        assert "by" not in head and "no room for: by" in "\n".join(lines)


def test_what_is_piped_is_whole(sqlite_url):
    fill(2)
    long = "x" * 300
    (planned,) = create_plan(
        measure, BossVisitSpectrum, arguments={"computed": f"/nonexistent/{long}"}
    )
    run_here(planned.plan)
    shown = astra("failures", str(planned.plan)).stdout
    assert any(
        f"/nonexistent/{long}" in line and line.lstrip()[0].isdigit() for line in shown.splitlines()
    )


def test_a_long_message_is_cut_before_it_costs_other_columns():
    table = Listing("page>", "node", "message", out="node", enough=20)
    table.add(1, "n1", "word " * 30)
    assert table.fitted(40)[1] == [] and table.fitted(30)[1] == ["node"]
    whole = Listing("page>", "node", "message", out="node")
    whole.add(1, "n1", "word " * 30)
    assert whole.fitted(40)[1] == ["node"]


@pytest.fixture
def kolkata(monkeypatch):
    """The time zone of this process is that of Kolkata, 5:30 hours ahead of UTC."""
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_people_read_local_times_with_their_zone_and_programs_read_utc(plans, kolkata):
    Plan.update(created="2020-01-01 20:00:00", paused="2020-01-01 20:00:00").execute()
    Attempt.update(seen="2020-01-01 20:00:00").execute()
    task = "tests.sample_tasks.measure"
    key = json.loads(astra("results", task, "--json").stdout)[0]["spectrum_pk"]
    listings = (["plans"], ["why", task, str(key)], ["status", "3"], ["status", "1", "--pages"])
    for words in listings:
        text = astra(*words).output
        assert "2020-01-02 01:30:00 IST" in text and "2020-01-01" not in text, text
    assert all(" IST" in line for line in astra("results", task).stdout.splitlines()[1:])
    for words in (["plans", "--json"], ["plans", "--csv"]):
        text = astra(*words).stdout
        assert "2020-01-01T20:00:00+00:00" in text and "2020-01-02" not in text
