"""Reports of plans that are long, tiny, empty or cancelled, and of what people write in messages."""

import os
import re
from datetime import UTC, datetime, timedelta

import pytest

from astra.api import run_here
from astra.database.connection import connection, dialect
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.models.plans import Page, Plan, Submission
from astra.plan.plan import create_plan
from astra.processes import process_began
from astra.report.format import clipped, first_line, in_both_zones
from astra.report.page import html
from astra.report.report import report_of
from astra.report.usage import _gauge
from astra.report.waste import _on_gauge
from astra.resume.cancel import cancel
from astra.states import PlanState
from astra.status.headline import Kind, headline_of
from astra.status.status import status
from tests.report.browser import chromium, show
from tests.sample_tasks import fill, measure


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def planned(n: int, run: bool = True, limit: int = 10, **arguments) -> int:
    fill(n)
    (made,) = create_plan(measure, "BossVisitSpectrum", limit=limit, arguments=arguments)
    if run:
        run_here(made.plan)
    return made.plan


def opened(browser, plan: int, folder, width: int = 1400):
    text = html(report_of([plan]))
    assert len(text.encode()) < 2_000_000
    file = folder / "report.html"
    file.write_text(text)
    page = show(browser, file, width)
    assert page.evaluate("document.documentElement.scrollWidth") == width and not page.errors
    return page


def many_failures(n_pages: int, n_failures: int, n_kinds: int) -> int:
    """A plan of 100 rows a page, of which some failed in many ways, with long tracebacks."""
    plan = planned(100, limit=100)
    n_failed = n_failures // n_pages
    with connection():
        Plan.update(n_pages=n_pages, n_rows=n_pages * 100).where(Plan.pk == plan).execute()
        Page.update(n_done=100 - n_failed, n_failed=n_failed).execute()
        Attempt.update(n_done=100 - n_failed, n_failed=n_failed).execute()
        dialect().run(
            "INSERT INTO page (plan_pk, number, n_rows, keys, outcomes, submission_pk, n_done, n_failed,"
            " n_no_result) SELECT plan_pk, i, 100, keys, outcomes, submission_pk, n_done, n_failed, 0"
            f" FROM page, generate_series(2, {n_pages}) AS i WHERE plan_pk = {plan}"
        )
        (run,) = Attempt.select()
        columns = {k: v for k, v in run.__data__.items() if k != "pk"}
        pages = Page.select(Page.pk, Page.number).where(Page.number > 1).tuples()
        began = datetime.now(UTC) - timedelta(days=1)
        Attempt.insert_many(
            {**columns, "page": pk, "host": f"node{n % 50}", "began": began + timedelta(seconds=9 * n),
             "seen": began + timedelta(seconds=9 * n + 70 + n % 60),
             "ended": began + timedelta(seconds=9 * n + 70 + n % 60)}
            for pk, n in pages
        ).execute()  # fmt: skip
        first = {"task": "x", "input_table": "x", "v_astra_major_minor": 8, "plan_pk": plan}
        Failure.insert_many(
            {**first, "key": n, "page": n % n_pages + 1, "attempt_pk": run.pk,
             "exception": f"Error{n % n_kinds}", "place": f"/code/tasks.py:{n % n_kinds} in f",
             "message": f"row {n} is bad", "traceback": "Traceback\n" + f"  frame {n} ä\n" * (5000 if n < n_kinds else 5)}
            for n in range(n_failures)
        ).execute()  # fmt: skip
    return plan


@pytest.mark.postgres
def test_a_long_plan_with_many_failures_is_readable(pg_url, browser, tmp_path):
    plan = many_failures(1000, 5000, 40)
    report = report_of([plan])
    assert (report.n_rows, report.n_pages, report.rows["failed"]) == (100_000, 1000, 5000)
    assert report.n_failure_kinds == len(report.failures) == 40
    assert {kind.rows for kind in report.failures} == {125} and report.failures_elsewhere == 0
    page = opened(browser, plan, tmp_path)
    assert page.inner_text(".verdict strong") == "Failed rows"
    assert (
        page.inner_text(".verdict p") == "All 100,000 rows have ended, 5,000 of them as failures."
    )
    assert page.locator("summary", has_text="Error17").inner_text() == (
        "Error17: row 17 is bad 125 rows: 17, 57, 97, 137, …"
    )
    page.close()


def test_one_row_shows_no_picture(url, browser, tmp_path):
    plan = planned(1)
    page = opened(browser, plan, tmp_path, 400)
    assert page.inner_text(".verdict p") == "Its one row has ended."
    assert page.locator("svg").count() == page.locator("table:visible").count() == 0
    page.close()
    failed = planned(1, raise_every=1)
    assert report_of([failed]).verdict == "Its one row has ended as a failure."


def test_a_bar_of_one_colour_is_not_drawn(sqlite_url, browser, tmp_path):
    whole = opened(browser, planned(200), tmp_path)
    assert whole.locator("svg.share").count() == 0
    assert not whole.locator("th", has_text="Slurm").count()  # an empty column of a local run
    whole.close()
    mixed = opened(browser, planned(200, nothing_every=7), tmp_path)
    assert mixed.locator("svg.share").count() == 1  # its rows; all pages are done
    mixed.close()


def test_a_plan_without_pages_has_no_rows_to_process(sqlite_url, browser, tmp_path):
    plan = planned(10, run=False)
    Page.delete().where(Page.plan == plan).execute()
    Plan.update(n_pages=0, n_rows=0).where(Plan.pk == plan).execute()
    page = opened(browser, plan, tmp_path)
    assert page.inner_text(".verdict p") == "There are no rows to process."
    page.close()


def test_a_cancelled_plan_is_shown_as_cancelled(sqlite_url, browser, tmp_path):
    untouched = planned(20, run=False)
    cancel(untouched)
    begun = planned(20)
    Page.update(n_done=0, outcomes=bytes(10)).where(
        (Page.plan == begun) & (Page.number == 2)
    ).execute()
    cancel(begun)
    for plan, left in ((untouched, 20), (begun, 10)):
        report = report_of([plan])
        assert report.kind is Kind.CANCELLED and report.next[0].startswith("astra submit tests.")
        page = opened(browser, plan, tmp_path)
        assert page.inner_text(".verdict strong") == "Cancelled"
        assert page.inner_text(".verdict p").startswith(f"{left} of {report.n_rows} rows have")
        page.close()


HOSTILE = "Größe µ 星 🌟 \x1b[31mred\x07 \x7f\x9b \u202egnp.exe \ufeff</pre><script>alert(1)</script> & \"'"


def test_a_cancelled_plan_beside_one_with_failed_rows_has_not_ended(url):
    failed = planned(4, raise_every=2)
    cancelled = planned(2, run=False)
    cancel(cancelled)
    assert headline_of([status(failed)]).text == "All 4 rows have ended, 2 of them as failures."
    assert headline_of([status(failed), status(cancelled)]).text == (
        "2 of 6 rows have not ended, as their plan was cancelled; 2 ended as failures."
    )


def test_any_text_in_a_message_is_escaped(sqlite_url, browser, tmp_path):
    plan = planned(20, raise_every=3)
    Failure.update(message=HOSTILE, traceback=HOSTILE * 5000, exception="Fehlér").execute()
    Attempt.update(message=HOSTILE, state="interrupted", log="/no/ö \x1b.log").execute()
    Page.update(n_done=0, n_failed=0).where(Page.number == 2).execute()
    Submission.update(host=HOSTILE, profile=HOSTILE * 100).execute()
    page = opened(browser, plan, tmp_path)
    text = page.content()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text) and "alert(1)</script>" not in text
    summary = page.locator("summary", has_text="Fehlér").inner_text()
    assert "Größe µ 星 🌟 \\x1b[31mred\\x07" in summary and "<script>" in summary
    assert "characters left out" in page.locator("details pre").first.text_content()
    page.close()


def test_what_was_wasted_is_named_by_what_attempts_measured(sqlite_url, monkeypatch):
    """The accounting does not answer; a page is slow, one was done twice, and memory was short."""
    plan = planned(60)
    began = datetime(2026, 11, 24, 20, tzinfo=UTC)
    Submission.update(kind="slurm", job_id=7).execute()
    for attempt in Attempt.select(Attempt, Page).join(Page):
        slow = attempt.page.number == 3
        ended = began + timedelta(seconds=1100 if slow else 20)
        Attempt.update(
            element=attempt.page.number, began=began, seen=ended, ended=ended, t_task_s=20.0,
            t_read_s=100.0 if slow else 0.0, t_write_s=0.0,
            number=2 if attempt.page.number == 4 else 1,
        ).where(Attempt.pk == attempt.pk).execute()  # fmt: skip
    monkeypatch.setattr("astra.report.usage.command.available", lambda: True)
    monkeypatch.setenv("PATH", "/nonexistent")
    report = report_of([plan])
    (note,) = [note for note in report.notes if "sacct" in note]
    assert report.efficiency is None and "sacct is not on PATH" in note
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in report.wasted] == [
        "1 of 6 attempts was not the first at its page; it spent 20 s in the task.",
        "Reading and writing took 1 min 40 s, 45.5 % of the time of attempts; the task took 2 min.",
        "The slowest page took 18 min 20 s, the median page 20 s: with smaller pages the plan "
        "ends sooner.",
    ]
    (text,) = _on_gauge(_gauge("memory", "MB", [(96.0, 100.0), (9.0, 100.0)]))
    assert text.replace("\N{NO-BREAK SPACE}", " ") == (
        "Memory: an element used 96.0 % (96 MB of 100 MB); request more, so that no element is "
        "ended by this limit."
    )


def test_a_plan_that_runs_has_worked_until_now(sqlite_url):
    plan = planned(20)
    earlier = datetime.now(UTC) - timedelta(hours=1)
    began = process_began(os.getpid())
    Page.update(n_done=9, outcomes=b"\1" * 9 + b"\0").where(Page.number == 2).execute()
    second = Attempt.page == Page.get(Page.number == 2).pk
    Attempt.update(state="running", ended=None, began=earlier, pid_began=began).where(
        second
    ).execute()
    report = report_of([plan])
    assert report.state is PlanState.RUNNING and report.pages == {"done": 1, "running": 1}
    assert report.verdict == (
        "1 of 20 rows has not ended; running and waiting elements continue by themselves."
    )
    assert (report.over_time.ended - earlier).total_seconds() == pytest.approx(3600, abs=60)
    assert [page.page for page in report.slow_pages][:1] == [2]


def test_texts_are_clipped_without_their_secrets():
    assert first_line(None) == first_line("  \n ") == ""
    url = "postgresql://me:geheim-9731@host/db"
    assert "geheim" not in first_line("x" * 270 + f" {url} " + "y" * 300)
    assert clipped("a" * 10, 4) == "aa … 6 characters left out … aa"


def test_times_are_written_in_both_zones(monkeypatch):
    import time

    moment = datetime(2026, 11, 24, 23, 30, 5, tzinfo=UTC)
    for zone, text in (
        ("UTC", "2026-11-24 23:30:05 UTC"),
        ("Europe/Berlin", "2026-11-24 23:30:05 UTC (2026-11-25 00:30:05 CET)"),
        ("America/Denver", "2026-11-24 23:30:05 UTC (16:30:05 MST)"),
    ):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert in_both_zones(moment).replace("\N{NO-BREAK SPACE}", " ") == text
    monkeypatch.undo()
    time.tzset()
