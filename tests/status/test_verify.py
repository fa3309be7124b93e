"""Verifying: sound plans are called sound, and whatever is broken by hand is found by its key."""

import json
from dataclasses import replace
from pathlib import Path

import peewee
import pytest
from click.testing import CliRunner

from astra.api import run_here
from astra.cli import show
from astra.cli.group import main
from astra.database.connection import connection, database, dialect, writing
from astra.element.claiming import claim_page, this_process
from astra.element.element import Element
from astra.models import BossVisitSpectrum, Source
from astra.models.attempts import Attempt
from astra.models.failures import Failure, NoResult
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.results.buffer import Buffer
from astra.results.claim import Claim
from astra.results.rows import HandedRow
from astra.results.stopping import Stop
from astra.resume.cancel import cancel
from astra.resume.resume import resume_local
from astra.status.verdict import CHECKS
from astra.status.verify import verify
from astra.submit.local import pages_to_run, start_local
from astra.tasks.provenance import arguments_of, digest_of, provenance_of, store_provenance
from tests.sample_tasks import Measured, OfSource, fill, measure, on_sources


def plan_of(n: int = 0, limit: int = 10, again: bool = False, **arguments) -> int:
    if n:
        fill(n)
    (planned,) = create_plan(
        measure, BossVisitSpectrum, limit=limit, arguments=arguments, again=again
    )
    return planned.plan


def run(plan: int, **arguments) -> int:
    if arguments:
        change_arguments(plan, arguments)
    Page.update(submission_pk=None).where(Page.plan == plan).execute()  # run here what is left
    run_here(plan)
    return plan


def change_arguments(plan: int, arguments: dict[str, object]) -> None:
    """Change the arguments of the plan, and those of its later results."""
    provenance = provenance_of(measure, arguments_of(measure, arguments), Measured)
    own = f"{provenance['fingerprint']}-{Plan.get_by_id(plan).token}"
    made_by = store_provenance({**provenance, "plan_pk": plan, "fingerprint": own})
    stored = json.dumps(arguments)
    given = {"arguments": stored, "arguments_digest": digest_of(stored), "made_by": made_by}
    Plan.update(given).where(Plan.pk == plan).execute()


def sql(statement: str, *values: object) -> None:
    mark = "%s" if dialect().name == "postgresql" else "?"
    database.execute_sql(statement.replace("?", mark), values)
    database.close()


def assert_sound(plan: int, **rows: int):
    found = verify(plan)
    assert found.sound and not found.breaches and found.exit_status == 0, found.breaches
    assert {name: n for name, n in found.rows.items() if n} == rows
    assert sum(found.rows.values()) == found.n_rows
    assert found.whole == ("pending" not in rows)
    return found


# --------------------------------------------------------------------------------------- sound


def test_a_plan_before_and_after_its_run(url):
    plan = plan_of(35)
    assert_sound(plan, pending=35)
    run(plan)
    assert_sound(plan, result=35)
    Plan.update(task_path="tests.sample_tasks:gone").execute()  # since its function was renamed
    assert_sound(plan, result=35)


def test_failures_and_rows_without_result_are_consistent(url):
    plan = run(plan_of(60, raise_every=7, null_every=10, nothing_every=11))
    bad = {k for k in range(1, 61) if k % 7 == 0}
    nothing = {k for k in range(1, 61) if k % 11 == 0} - bad
    null = {k for k in range(1, 61) if k % 10 == 0} - bad - nothing
    n_failed, n_nothing = len(bad | null), len(nothing)
    assert_sound(plan, result=60 - n_failed - n_nothing, failure=n_failed, no_result=n_nothing)


def test_failed_rows_that_are_taken_again(url):
    plan = run(plan_of(30, raise_every=5))
    assert_sound(plan, result=24, failure=6)
    # As resume --failed does before its elements start, and then each way that the rows may end.
    from astra.resume.resume import _reset

    _reset(get_plan(plan), [1, 2, 3])
    assert_sound(plan, result=24, pending=6)
    run(plan, raise_every=10, nothing_every=15)
    found = assert_sound(plan, result=26, failure=3, no_result=1)
    assert found.n_attempts == 6
    resume_local(plan, 1, failed=True)
    assert_sound(plan, result=26, failure=3, no_result=1)
    run(plan)
    change_arguments(plan, {})
    resume_local(plan, 1, failed=True)
    assert_sound(plan, result=29, no_result=1)


def test_a_plan_that_was_told_to_end_and_goes_on(url, tmp_path):
    plan = plan_of(30, row_s=0.01)
    page = Page.get(Page.number == 1)
    submission = Submission.create(
        plan=plan, token="t", kind="local", state="submitted", job_name="t", host="here",
        elements=[1], offset=0, pages_per_element=1, profile="{}", created_by="test",
    )  # fmt: skip
    Page.update(submission_pk=submission.pk).where(Page.pk == page.pk).execute()
    database.close()
    stop = Stop()
    stop.ask("test")
    with Element(get_plan(plan), submission, stop) as element:
        element.run_page(1, 1)
    found = verify(plan)
    assert found.sound and not found.whole
    run(plan)
    assert_sound(plan, result=30)


def test_a_cancelled_plan_whose_rows_another_takes(url):
    first = plan_of(30)
    cancel(first)
    second = run(plan_of())
    found = assert_sound(first, pending=30)
    assert found.of_others == 0
    assert_sound(second, result=30)


def test_a_cancelled_plan_whose_element_had_been_killed(url):
    """Its page was taken from the attempt, which recorded nothing; an attempt without a page is
    a breach in any other plan."""
    plan = plan_of(30)
    submission = start_local(get_plan(plan), pages_to_run(get_plan(plan)))
    killed = replace(this_process("local", Path()), pid_began="gone")
    with connection(), writing():
        claim_page(get_plan(plan), 1, submission, 1, killed)
    assert cancel(plan).rows_held == 0
    assert_sound(plan, pending=30)
    Plan.update(cancelled=None).execute()
    assert not verify(plan).sound


def test_rows_modified_since_and_computed_again(url, capsys):
    first = run(plan_of(30, raise_every=10))
    BossVisitSpectrum.update(snr=-1).where(BossVisitSpectrum.spectrum_pk << [3, 4, 10]).execute()
    assert assert_sound(first, result=27, failure=3).modified_since == 2
    second = run(plan_of(raise_every=4))
    assert_sound(second, result=2, failure=1)
    found = assert_sound(first, result=27, failure=3)
    assert found.of_others == 2 and found.modified_since == 1
    show.verdict(found)
    said = capsys.readouterr().out
    assert "\n  2 rows whose current result or failure comes from another plan" in said
    assert "\n  1 row modified since the result, and pending again\n" in said
    third = run(plan_of(again=True))
    assert_sound(third, result=3)
    for plan in (first, second):
        assert verify(plan).sound


def test_ends_that_another_plan_changed(url):
    first = run(plan_of(30, raise_every=5, nothing_every=7))
    second = run(plan_of(again=True, raise_every=7, nothing_every=5))
    found = verify(first)
    assert found.sound and found.of_others == 10
    assert verify(second).sound


def test_results_that_were_there_before_are_found(url):
    plan = plan_of(30)
    list(measure(BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk > 12)))
    run(plan)
    found = assert_sound(plan, result=30)
    assert found.of_others == 18
    assert sum(n for (n,) in Attempt.select(Attempt.n_found).tuples()) == 18


def test_an_input_that_was_deleted(url):
    plan = plan_of(30)
    BossVisitSpectrum.delete().where(BossVisitSpectrum.spectrum_pk == 3).execute()
    run(plan)
    BossVisitSpectrum.delete().where(BossVisitSpectrum.spectrum_pk == 4).execute()
    assert assert_sound(plan, result=29, failure=1).inputs_gone == 1


def test_a_missing_result_of_a_source_is_found(url):
    fill(3, sources=8)
    (planned,) = create_plan(on_sources, Source, limit=3)
    run_here(planned.plan)
    assert_sound(planned.plan, result=8)
    OfSource.delete().where(OfSource.source_pk == 2).execute()
    (breach,) = verify(planned.plan).breaches
    assert (breach.check, breach.key) == ("result-missing", 2)


def test_a_commit_whose_answer_was_lost_counts_once(url, monkeypatch):
    """The checkpoint is committed, the connection is lost, and the same is written once more."""
    plan = plan_of(30, raise_every=7, nothing_every=11)
    advance, calls = Claim.advance, []

    def lost(claim, progress):
        calls.append(claim)
        if len(calls) % 2:
            raise peewee.OperationalError("database is locked")
        advance(claim, progress)

    monkeypatch.setattr(Claim, "advance", lost)
    run(plan)
    assert len(calls) >= 6
    assert_sound(plan, result=24, failure=4, no_result=2)
    assert {times for (times,) in Failure.select(Failure.times).tuples()} == {1}


def test_rows_found_while_a_checkpoint_is_written(url, monkeypatch):
    """A row whose result others wrote is found between a checkpoint's beginning and its end."""
    plan = plan_of(20, limit=20)
    list(measure(BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk == 1)))
    take, calls = Buffer.take, []

    def find_after(buffer):
        taken = take(buffer)
        if not calls:
            calls.append(buffer)
            buffer.add(found=[HandedRow(1, None)])
        return taken

    monkeypatch.setattr(Buffer, "take", find_after)
    monkeypatch.setattr("astra.element.reader.Reader._note_missing", lambda *missing: [])
    run(plan, batch_size=5)
    assert_sound(plan, result=20)


# ------------------------------------------------------------------------------------ not sound


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM page WHERE number = 2", "UPDATE page SET n_rows = 9 WHERE number = 2",
     "ALTER TABLE measured RENAME TO gone"],
)  # fmt: skip
def test_rows_that_cannot_be_counted_are_not_taken_for_ended(url, damage):
    plan = plan_of(20)
    Page.update(n_done=10, outcomes=b"\x01" * 10).where(Page.number == 1).execute()
    sql(damage)
    found = verify(plan)
    assert not found.sound and not found.whole
    shown = CliRunner().invoke(main, ["verify", str(plan)]).output
    n_pending = "its rows are not counted"
    if sum(found.rows.values()):
        n_pending = f"{20 - found.rows['result']} rows pending"
    assert f"not whole: {n_pending} (astra status)" in shown


#: Key 23 stands in page 1, which holds 30 to 21; 27 failed there, and 22 has no result.
_PAGE = "(SELECT pk FROM page WHERE number = 1)"
_CORRUPTIONS = {
    "page gone": ("pages", 2, None, "DELETE FROM page WHERE number = 2"),
    "plan's rows": ("pages", None, None, "UPDATE plan SET n_rows = n_rows + 1"),
    "page's rows": ("shape", 1, None, "UPDATE page SET n_rows = 9 WHERE number = 1"),
    "done": ("counts", 1, None, "UPDATE page SET n_done = n_done - 1 WHERE number = 1"),
    "failed": ("counts", 1, None, "UPDATE page SET n_failed = n_failed + 1 WHERE number = 1"),
    "result gone": ("result-missing", 1, 23, "DELETE FROM measured WHERE spectrum_pk = 23"),
    "of another version": (
        "result-missing", 1, 23, "UPDATE measured SET v_astra = 9000 WHERE spectrum_pk = 23",
    ),
    "failure gone": ("failure-missing", 1, 27, "DELETE FROM failure WHERE key_text = '27'"),
    "no result gone": ("no-result-missing", 1, 22, "DELETE FROM no_result WHERE key_text = '22'"),
    "both": (
        "ended-twice", 1, 27,
        "UPDATE measured SET spectrum_pk = 27 WHERE spectrum_pk = 23",
    ),
    "failure beside": ("ended-twice", 1, 23, "UPDATE failure SET key_text = '23' WHERE key_text = '27'"),
    "no result beside": ("ended-twice", 1, 23, "UPDATE no_result SET key_text = '23' WHERE key_text = '22'"),
    "of page 2": (
        "wrong-page", 1, 23,
        "UPDATE measured SET attempt_pk = (SELECT attempt_pk FROM page WHERE number = 2) "
        "WHERE spectrum_pk = 23",
    ),
    "read long ago": (
        "read-too-early", 1, 23,
        "UPDATE measured SET input_read = '2020-01-01 00:00:00.000000' WHERE spectrum_pk = 23",
    ),
    "read later": (
        "read-too-early", 1, 23,
        "UPDATE measured SET input_read = '2120-01-01 00:00:00.000000' WHERE spectrum_pk = 23",
    ),
    "taken back": ("attempts", 1, None, "UPDATE page SET attempt_pk = NULL WHERE number = 1"),
    "attempt's done": (
        "sums", 1, None, f"UPDATE attempt SET n_done = n_done + 1 WHERE page_pk = {_PAGE}",
    ),
    "attempt's failed": (
        "sums", 1, None, f"UPDATE attempt SET n_failed = n_failed - 1 WHERE page_pk = {_PAGE}",
    ),
    "attempt's count": (
        "written-unseen", 1, None,
        "UPDATE attempt SET n_done = n_done - 1, n_found = n_found + 1 "
        f"WHERE page_pk = {_PAGE}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", _CORRUPTIONS)
def test_what_is_broken_is_named(url, name):
    plan = run(plan_of(30, raise_every=27, nothing_every=22))
    assert verify(plan).sound
    check, page, key, statement = _CORRUPTIONS[name]
    sql(statement)
    found = verify(plan)
    assert not found.sound and found.exit_status == 4
    assert (check, page, key) in {(b.check, b.page, b.key) for b in found.breaches}, found.breaches


def outcome_of(key: int, outcome: int) -> None:
    """Change the outcome of a row, and the page's numbers with it."""
    page = next(page for page in Page.select() if key in page.keys)
    outcomes = bytearray(page.outcomes)
    outcomes[page.keys.index(key)] = outcome
    counts = {"n_done": 1, "n_failed": 2, "n_no_result": 3}
    counts = {name: outcomes.count(value) for name, value in counts.items()}
    Page.update(outcomes=bytes(outcomes), **counts).where(Page.pk == page.pk).execute()


@pytest.mark.parametrize("key, outcome", [(23, 0), (27, 0), (22, 0), (23, 2), (23, 3), (27, 1)])
def test_an_outcome_that_was_changed(url, key, outcome):
    plan = run(plan_of(30, raise_every=27, nothing_every=22))
    outcome_of(key, outcome)
    found = verify(plan)
    by_key = {b.check for b in found.breaches if b.key == key}
    if outcome == 0 and key != 23:
        # It looks like a failed row that is taken again; but the attempt says that all is done.
        Attempt.update(n_failed=0, n_no_result=0).execute()
        by_key = {b.check for b in verify(plan).breaches if b.key == key}
    expected = {0: "not-counted", 1: "result-missing", 2: "ended-twice", 3: "ended-twice"}
    assert expected[outcome] in by_key, found.breaches


def test_an_outcome_that_does_not_exist(url):
    plan = run(plan_of(10))
    outcome_of(3, 9)
    assert {b.check for b in verify(plan).breaches} >= {"shape"}


def test_a_key_that_stands_twice_is_found(url):
    plan = plan_of(30)
    page = Page.get(Page.number == 1)
    page.keys = [*page.keys[:-1], 5]
    page.save()
    assert [(b.check, b.page, b.key) for b in verify(plan).breaches] == [("key-twice", 1, 5)]


def test_two_running_attempts_of_a_page_are_found(url):
    plan = run(plan_of(10))
    first = Attempt.get()
    Attempt.insert(
        page=first.page.pk, submission_pk=1, number=0, element=1, state="running", host="h", pid=1
    ).execute()
    assert [b.check for b in verify(plan).breaches] == ["attempts"]


def test_a_page_called_done_with_rows_pending(url):
    plan = plan_of(10)
    page = Page.get()
    pk = Attempt.insert(
        page=page.pk, submission_pk=1, number=1, element=1, state="done", host="h", pid=1
    ).execute()
    Page.update(attempt_pk=pk).execute()
    assert [b.check for b in verify(plan).breaches] == ["done-too-early"]


def test_a_second_attempt_wrote_rows_of_the_first(url):
    """Write like an attempt that does not check whether the page still belongs to it."""
    plan = run(plan_of(10))
    first = Attempt.get()
    second = Attempt.insert(
        page=first.page.pk, submission_pk=1, number=2, element=1, state="done", host="h", pid=1
    ).execute()
    Page.update(attempt_pk=second).execute()
    assert verify(plan).sound
    Measured.update(attempt_pk=second).where(Measured.spectrum_pk == 3).execute()
    found = {b.check: b for b in verify(plan).breaches}
    assert found["read-too-early"].key == 3
    assert found["written-unseen"].page == 1 and str(second) in found["written-unseen"].problem


def test_the_list_is_bounded_and_the_count_is_not(url, capsys):
    plan = run(plan_of(50))
    Measured.delete().where(Measured.spectrum_pk > 7).execute()
    found = verify(plan, max_listed=5)
    assert found.n_breaches == found.checks["result-missing"] == 43 and len(found.breaches) == 5
    show.verdict(found)
    said = capsys.readouterr().out
    assert "result-missing: 43 breaches" in said and "\n    ... and 38 more\n" in said


def test_the_command_says_what_is_broken_and_exits_with_4(url):
    plan = run(plan_of(20, raise_every=9))
    done = CliRunner().invoke(main, ["verify", str(plan)])
    assert done.exit_code == 0 and " consistent: 18 done + 2 failed of 20 rows" in done.stdout
    Measured.delete().where(Measured.spectrum_pk << [3, 11]).execute()
    done = CliRunner().invoke(main, ["verify", str(plan)])
    assert done.exit_code == 4 and "inconsistent" in done.stdout
    assert "page 1, key 11" in done.stdout and "page 2, key 3" in done.stdout
    assert CHECKS["result-missing"]["meaning"] in done.stdout
    done = CliRunner().invoke(main, ["verify", str(plan), "--json"])
    answer = json.loads(done.stdout)
    assert done.exit_code == 4 and answer["n_breaches"] == 2 and not answer["sound"]
    assert {(b["page"], b["key"]) for b in answer["breaches"]} == {(1, 11), (2, 3)}


def test_nothing_is_written(pg_url):
    plan = run(plan_of(5))
    database.close()
    with dialect().snapshot(), pytest.raises(Exception, match="read-only"):
        Page.update(n_done=0).execute()
    assert_sound(plan, result=5)
    assert Failure.select().count() == NoResult.select().count() == 0


def test_without_the_table_of_results_no_row_is_said_to_be_pending(url):
    plan = plan_of(30)
    with connection():
        Measured.drop_table()
    done = CliRunner().invoke(main, ["verify", str(plan)])
    assert done.exit_code == 4 and "the table measured is missing" in done.output
    assert "inconsistent: no row was checked, 3 pages" in done.output
    assert "pending" not in done.output
