"""Damaged JSON in a column of astra's own is reported and counts as nothing; nothing else stops."""

import json
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from astra.api import run_here
from astra.cli.group import main
from astra.database.connection import bind, connection, database, reset
from astra.models.failures import Failure
from astra.models.nights import Night, NightPlan
from astra.models.plans import MadeBy, Page, Plan, Submission
from astra.night.notify import NOTIFIED
from astra.night.totals import retries_of
from astra.plan.plan import create_plan
from astra.policy.next_steps import parsed_ends
from tests.sample_tasks import fill, measure
from tests.servers import Postgres

_RETRIES = json.dumps([{"state": "TIMEOUT", "node": "n1", "no_row_ended": False}])

#: Texts that are no JSON, or not the JSON that astra stores.
_DAMAGED = (
    "{",
    "",
    "7",
    "null",
    "[7]",
    '{"a": 1}',
    '[{"state": []}]',
    '[{"other": "x"}]',
    "[" * 10**5,
)


@pytest.fixture(scope="module")
def archive(postgres: Postgres) -> Iterator[str]:
    """A plan with rows left, one that has ended, and a night of both."""
    url = postgres.create_database("damaged_json", template="astra_template")
    bind(url)
    fill(20)
    (ended,) = create_plan(measure, "BossVisitSpectrum", limit=10, arguments={"raise_every": 7})
    run_here(ended.plan)
    fill(30)
    create_plan(measure, "BossVisitSpectrum", limit=10)
    with connection():
        Page.update(retries=_RETRIES).execute()
        sent = {"mail": {"of": "x", "at": "now", "result": NOTIFIED}}
        night = Night.create(
            name="survey", date="2026-11-24", cwd="/", host="h", created_by="me",
            ended="2026-11-25 05:00:00", notified=json.dumps(sent),
        )  # fmt: skip
        for plan in Plan.select():
            NightPlan.create(night=night.pk, task=plan.task, plan_pk=plan.pk)
    reset()
    yield url
    postgres.drop_database("damaged_json")


def damage(text: str) -> None:
    Page.update(retries=text).execute()
    Submission.update(profile=text).execute()
    MadeBy.update(arguments=text, files=text).execute()
    Night.update(notified=text).execute()
    Plan.update(arguments=text).execute()


@pytest.mark.parametrize("text", _DAMAGED)
def test_damaged_ends_are_recognized(text):
    assert parsed_ends(_RETRIES) and parsed_ends(text) is None


def test_damaged_retries_are_reported_and_count_as_none(archive, monkeypatch, caplog):
    monkeypatch.setenv("ASTRA_DATABASE_URL", archive)
    assert retries_of([1, 2]) == 5
    with connection(), database.atomic() as transaction:
        Page.update(retries="{").where((Page.plan == 2) & (Page.number == 3)).execute()
        assert retries_of([1, 2]) == 4
        transaction.rollback()
    assert "`retries` of page 3 of plan 2 is damaged" in caplog.text


def test_a_list_of_keys_that_is_none_is_named(sqlite_url):
    fill(10)
    (planned,) = create_plan(measure, "BossVisitSpectrum", limit=10)
    run_here(planned.plan)
    with connection():
        database.execute_sql("UPDATE submission SET elements = 'nonsense'")
    done = CliRunner().invoke(main, ["status", str(planned.plan)])
    assert done.exit_code == 5 and "submission.elements holds 'nonsense'" in done.output


def test_a_forged_key_of_a_failure_is_shown_as_it_is(url, tmp_path):
    """Without the signs that a terminal would obey."""
    fill(10)
    (planned,) = create_plan(measure, "BossVisitSpectrum", arguments={"raise_every": 7})
    run_here(planned.plan)
    with connection():
        Failure.update(key="7\x1b[2J").execute()
    for command in (
        "failures 1",
        "failures 1 --json",
        f"report 1 -o {tmp_path}/r.html",
        "verify 1",
    ):
        done = CliRunner().invoke(main, command.split())
        assert done.exit_code in (0, 4) and "\x1b" not in done.output, (command, done.output)


@pytest.mark.parametrize("text", ["{", "[7]", '{"options": 7}'])
def test_no_command_ends_with_a_traceback(archive, tmp_path, monkeypatch, text):
    monkeypatch.setenv("ASTRA_DATABASE_URL", archive)
    with connection():
        damage(text)
    for command in (
        "metrics", "status", "status 2", "plans", "nights survey", "verify 1",
        "why tests.sample_tasks.measure 3", f"report 1 --output {tmp_path}/r.html",
    ):  # fmt: skip
        done = CliRunner().invoke(main, command.split())
        assert done.exit_code in (0, 3, 4, 8), (command, done.output)
        assert done.exception is None or isinstance(done.exception, SystemExit), command
