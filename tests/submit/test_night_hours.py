"""The bounds of a night: its hours, what it runs at once, and which rows come first."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from astra.config.nights import checked
from astra.config.profiles import choose_profile
from astra.config.retry_rules import rules
from astra.database.connection import connection, database, dialect, writing
from astra.database.postgresql import PostgreSQL
from astra.element.claiming import claim_page, this_process
from astra.element.late_start import begin
from astra.errors import OutOfHours
from astra.models import BossVisitSpectrum
from astra.models.attempts import Attempt
from astra.models.plans import Page, Submission
from astra.night import nightly
from astra.night.plans import max_elements
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.policy.retry_policy import end_of, next_step
from astra.resume.resume import resume
from astra.slurm.limits import PartitionLimits
from astra.states import PageState
from astra.status.status import status
from astra.submit.arrays import shares
from astra.submit.intent import make_intent, new_submission
from astra.submit.night_hours import Hours, hours_from_now, next_hours
from astra.submit.submit import submit, submit_pages
from tests.conftest import ROOT
from tests.nights import a_night, plan_of, settings_of_tasks
from tests.sample_tasks import Measured, costly, fill, measure
from tests.servers import shifted_clock, wait_for


def test_hours_are_the_next_ones_of_the_clock():
    def at(*moment: int) -> tuple[str, str]:
        found = next_hours("06:30", "07:00", datetime(*moment))
        return tuple(f"{datetime.fromtimestamp(s):%d %H:%M}" for s in vars(found).values())

    assert at(2026, 11, 24, 20, 0) == ("25 06:30", "25 07:00")
    assert at(2026, 11, 25, 2, 0) == ("25 06:30", "25 07:00")
    assert at(2026, 11, 25, 6, 45) == ("26 06:30", "26 07:00")
    late = next_hours("23:50", "00:10", datetime(2026, 11, 24, 20, 0))
    assert late.drain_by - late.start_until == 1200
    assert next_hours(None, "07:00", datetime.now()).start_until is not None
    assert next_hours(None, None, datetime.now()).open()


@pytest.mark.parametrize(
    ("zone", "clock", "since", "moment"),
    [
        # At midnight of September 6, 2026, clocks in Santiago go to 01:00: 00:30 is skipped.
        ("America/Santiago", "00:30", "2026-09-05T23:00:00Z", "2026-09-06T04:00:00Z"),
        ("America/Santiago", "00:00", "2026-09-05T23:00:00Z", "2026-09-06T04:00:00Z"),
        ("America/Santiago", "01:00", "2026-09-05T23:00:00Z", "2026-09-06T04:00:00Z"),
        ("America/Santiago", "23:30", "2026-09-06T02:31:00Z", "2026-09-06T03:30:00Z"),
        # On Lord Howe Island they go by half an hour, on October 4 from 02:00, on April 5 back.
        ("Australia/Lord_Howe", "02:15", "2026-10-03T12:00:00Z", "2026-10-03T15:30:00Z"),
        ("Australia/Lord_Howe", "02:45", "2026-10-03T12:00:00Z", "2026-10-03T15:45:00Z"),
        ("Australia/Lord_Howe", "01:45", "2026-04-04T12:00:00Z", "2026-04-04T14:45:00Z"),
        # On March 28 clocks in Nuuk go from 23:00 to the next day.
        ("America/Nuuk", "23:30", "2026-03-28T22:00:00Z", "2026-03-29T01:00:00Z"),
        # A minute after the clock has read it, it is the next day's.
        ("Asia/Kathmandu", "06:30", "2026-04-04T00:46:00Z", "2026-04-05T00:45:00Z"),
    ],
)
def test_a_clock_that_skips_what_it_is_asked_for(zone, clock, since, moment, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        found = next_hours(clock, None, datetime.fromisoformat(since)).start_until
    finally:
        monkeypatch.undo()
        time.tzset()
    assert found == datetime.fromisoformat(moment).timestamp()


@pytest.mark.parametrize(
    ("clocks", "begins", "hours"),
    [
        # On March 29, 2026, at 01:00 UTC, clocks in Berlin go from 02:00 to 03:00.
        (("02:45", "03:00"), "2026-03-28T19:00", ("2026-03-29T01:00", "2026-03-29T01:00")),
        (("02:15", "03:30"), "2026-03-28T19:00", ("2026-03-29T01:00", "2026-03-29T01:30")),
        (("01:30", "02:30"), "2026-03-28T19:00", ("2026-03-29T00:30", "2026-03-29T01:00")),
        (("06:30", "07:00"), "2026-03-28T19:00", ("2026-03-29T04:30", "2026-03-29T05:00")),
        # On October 25 at 01:00 UTC they go from 03:00 back to 02:00.
        (("02:30", "03:00"), "2026-10-24T18:00", ("2026-10-25T00:30", "2026-10-25T02:00")),
        (("02:45", "02:15"), "2026-10-24T18:00", ("2026-10-25T00:45", "2026-10-25T01:15")),
        (("02:40", None), "2026-10-25T00:50", ("2026-10-25T01:40", None)),
    ],
)  # fmt: skip
def test_hours_are_moments_where_clocks_are_changed(monkeypatch, clocks, begins, hours):
    """A night begins at a moment, given here in UTC, on a machine in Berlin."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        found = next_hours(*clocks, datetime.fromisoformat(f"{begins}+00:00"))
    finally:
        monkeypatch.undo()
        time.tzset()
    wanted = [h and datetime.fromisoformat(f"{h}+00:00").timestamp() for h in hours]
    assert [found.start_until, found.drain_by] == wanted
    assert Hours(0, 600).stop_at == 540 and Hours(0, 40).stop_at == 30


def test_without_a_last_beginning_elements_are_asked_to_stop_a_minute_before_the_end():
    evening = datetime(2026, 11, 24, 20, 0)
    end = datetime(2026, 11, 25, 7, 0).timestamp()
    for hours in (next_hours(None, "07:00", evening), next_hours("06:30", "07:00", evening)):
        assert (hours.stop_at, hours.drain_by) == (end - 60, end)
        assert hours.start_until <= hours.stop_at


def test_shares_are_by_weight_and_never_more_than_there_is():
    assert shares(10, [600, 300, 100]) == [6, 3, 1]
    assert shares(2, [5, 5, 5]) == [1, 1] and shares(None, [7]) == [] and shares(0, [1]) == []
    for total in range(1, 40):
        for weights in ([1], [1, 1000], [3, 3, 3], [1000, 1, 1, 20]):
            found = shares(total, weights)
            assert sum(found) == total and len(found) == min(total, len(weights)) and min(found) > 0


def test_an_element_that_begins_too_late_gives_back_what_nobody_began(url):
    plan = get_plan(plan_of(50, 10))
    pages = list(Page.select().order_by(Page.number))
    first = new_submission(plan, range(1, 6), 0, 1, "local")
    second = new_submission(plan, range(1, 6), 0, 1, "local", pulls=True)
    make_intent(first, pages)
    Attempt.create(
        page=pages[1], submission_pk=first.pk, number=1, element=2, state="interrupted", host="h",
        pid=1,
    )  # fmt: skip
    Page.update(attempt_pk=1).where(Page.number == 2).execute()
    make_intent(second, list(Page.select().order_by(Page.number)))
    ends = json.dumps([{"state": "TIMEOUT", "node": None, "no_row_ended": True}])
    Page.update(retries=ends).where(Page.number == 2).execute()
    Attempt.create(
        page=pages[2], submission_pk=second.pk, number=1, element=3, state="running", host="h",
        pid=1,
    )  # fmt: skip
    begin(int(time.time()) + 600, second.token)  # in time: nothing happens
    with pytest.raises(OutOfHours, match="4 pages"):
        begin(int(time.time()) - 1, second.token)
    found = {p.number: (p.submission_pk, p.retries) for p in Page.select()}
    # Page 2 is as it was before it was submitted again, without the retry; 3 had begun.
    assert found == {
        1: (None, None), 2: (first.pk, None), 3: (second.pk, None), 4: (None, None), 5: (None, None)
    }  # fmt: skip
    assert [p.number for p in Page.select() if p.free] == [3]  # the first was no pool


@pytest.mark.postgres
def test_an_element_that_begins_too_late_gives_back_no_page_that_is_being_claimed(pg_url):
    """An element of the same array, which began in time, takes its next page at this moment."""
    plan = get_plan(plan_of(30, 10))
    submission = new_submission(plan, range(1, 4), 0, 1, "local", pulls=True)
    make_intent(submission, list(Page.select()))
    said: list[str] = []

    def begin_late() -> None:
        with pytest.raises(OutOfHours) as late:
            begin(int(time.time()) - 1, submission.token)
        said.append(str(late.value))

    late = threading.Thread(target=begin_late)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    with connection(), writing():
        claim_page(plan, None, submission, 2, this_process("local", Path()))
        late.start()
        wait_for(lambda: database.execute_sql(waiting).fetchone()[0], "a lock", 20)
    late.join()
    assert "2 pages" in said[0]
    with connection():
        pages = {p.number: (p.submission_pk, p.free) for p in Page.select()}
    assert pages == {1: (None, None), 2: (submission.pk, False), 3: (None, None)}


def test_an_element_that_begins_too_late_for_a_plan_that_was_removed(url):
    with pytest.raises(OutOfHours, match="0 pages"):
        begin(int(time.time()) - 1, "gone")


def test_the_first_element_that_begins_too_late_cancels_those_that_wait(url, monkeypatch):
    plan, cancelled = get_plan(plan_of(20, 10)), []
    submission = new_submission(plan, [1, 2], 0, 1, "slurm", pulls=True)
    make_intent(submission, list(Page.select()))
    Submission.update(state="submitted", job_id=17).execute()
    monkeypatch.setattr("astra.slurm.command.available", lambda: True)
    monkeypatch.setattr(
        "astra.slurm.client.cancel",
        lambda job, waiting_only: cancelled.append((job.job_id, waiting_only)),
    )
    for n_pages in (2, 0):
        with pytest.raises(OutOfHours, match=f"{n_pages} pages"):
            begin(int(time.time()) - 1, submission.token)
    assert cancelled == [(17, True)]


def element(submission: Submission, *hours: object, **env: str) -> subprocess.CompletedProcess:
    """Run an element of a submission with these options."""
    database.close()
    return subprocess.run(
        [sys.executable, "-m", "astra", "run-page", "--plan", str(submission.plan_pk), "--job",
         submission.token, "--element", "1", *map(str, hours)],
        cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def only_page(plan_pk: int) -> Submission:
    submission = new_submission(get_plan(plan_pk), [1], 0, 1, "local")
    make_intent(submission, list(Page.select()))
    return submission


def test_an_element_is_asked_to_stop_at_the_end_of_the_hours(sqlite_url):
    submission = only_page(plan_of(200, 200, row_s=0.2))
    done = element(submission, "--stop-at", int(time.time()) + 4)
    assert done.returncode == 74 and "hours of the night are over" in done.stderr
    with connection():
        assert Page.get().n_done == Measured.select().count() < 200


def test_an_element_that_began_in_time_continues_after_a_crash(sqlite_url):
    """The last row kills its process, after the moment until which elements may begin."""
    fill(20)
    (planned,) = create_plan(costly, limit=20, arguments={"row_s": 0.3, "kill_at": 1})
    now = int(time.time())
    hours = ("--start-until", now + 4, "--stop-at", now + 600)
    done = element(only_page(planned.plan), *hours)
    assert done.returncode == 0, done.stderr
    with connection():
        assert (Page.get().n_done, Page.get().n_failed) == (19, 1)


@pytest.mark.parametrize("wrong", [2, -2])
def test_the_hours_are_those_of_the_databases_clock_whatever_a_node_has(wrong, pg_url):
    ahead = shifted_clock(wrong)
    plan, now = plan_of(10, 10), int(time.time())
    late = element(only_page(plan), "--start-until", now - 60, "--stop-at", now + 600, **ahead)
    assert late.returncode == 74 and "1 pages count as not submitted" in late.stderr
    done = element(only_page(plan), "--start-until", now + 600, "--stop-at", now + 1200, **ahead)
    assert done.returncode == 0, done.stderr
    with connection():
        assert Page.get().n_done == 10


def test_a_night_has_the_hours_of_the_clock_where_it_begins(pg_url, monkeypatch):
    """The clock of the database is 90 minutes ahead of this machine's."""
    here = hours_from_now("06:30", "07:00")
    database_now = dialect().now
    ahead = timedelta(minutes=90)
    monkeypatch.setattr(PostgreSQL, "now", lambda self: database_now() + ahead)
    there = hours_from_now("06:30", "07:00")
    assert there == Hours(here.start_until + 5400, here.drain_by + 5400)
    assert Hours(int(time.time()) + 6000).open() and not Hours(int(time.time()) + 5000).open()


def test_a_night_that_its_hours_ended_says_when_and_in_which_zone(sqlite_url, monkeypatch):
    night = a_night()
    night.start_until = datetime(2026, 3, 29, 1, 30, tzinfo=UTC).timestamp()
    night.save()
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        closed = nightly._advance(night, settings_of_tasks("measure"))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert closed.state == "not whole"
    assert closed.message.endswith("because nothing begins after 2026-03-29 03:30:00 CEST")


def test_an_element_that_the_hours_ended_uses_up_no_retry():
    end = end_of(PageState.INTERRUPTED, "FAILED", 74, True, "n1")
    assert end.state == "HOURS"
    step = next_step(
        end, [end] * 50, rules(), {"time": "01:00:00"}, {"time": "01:00:00"}, PartitionLimits()
    )
    assert step.retry and not step.options and "hours of the night were over" in step.explanation


def test_new_rows_come_before_modified_ones(url):
    plan_of(30, 10)
    database.execute_sql("DELETE FROM page")
    database.execute_sql("DELETE FROM plan")
    fill(10)  # rows 31 to 40: new, and older than the change of the others
    for row in BossVisitSpectrum.select().where(BossVisitSpectrum.spectrum_pk <= 30):
        Measured.from_spectrum(row, value=1.0).save(force_insert=True)
    BossVisitSpectrum.update(snr=99.0).where(BossVisitSpectrum.spectrum_pk <= 30).execute()
    database.close()

    def first(new_first: bool) -> set[int]:
        (planned,) = create_plan(
            measure, "BossVisitSpectrum", max_rows=10, limit=5, new_first=new_first
        )
        with connection():
            pages = Page.select().where(Page.plan == planned.plan)
            keys = {key for page in pages for key in page.keys}
            pages.model.delete().execute()
        return keys

    assert first(True) == set(range(31, 41)) and max(first(False)) <= 30


def test_connections_are_the_servers_less_some_for_others(pg_url, postgres):
    def night(**more):
        return checked({"n": {"tasks": ["slam.slam"], **more}})["n"]

    ((most,),) = postgres.sql("SHOW max_connections")
    with connection():
        assert max_elements(night(headroom=20)) == (int(most) - 3 - 20) // 2
        assert max_elements(night(connections=12)) == 6
        assert max_elements(night(connections=12, throttle=4)) == 4
        assert max_elements(night(headroom=10_000)) == 1
    for key in ("start_until", "drain_by"):
        with pytest.raises(ValueError, match="time of day"):
            night(**{key: "25:00"})


@pytest.mark.slurm
@pytest.mark.postgres
def test_nothing_begins_after_the_hours_and_what_runs_is_drained(slurm):
    plan = plan_of(400, 100, row_s=0.5)
    now = int(time.time())
    hours = Hours(now + 8, now + 16)
    submit(plan, options={"throttle": 2}, hours=hours)
    wait_for(slurm.idle, "the end of the array", 120)
    with connection():
        began = [a.began.timestamp() for a in Attempt.select()]
        ended = [a.ended.timestamp() for a in Attempt.select() if a.ended]
    # The others find room once the first two were drained.
    assert all(t < hours.drain_by for t in began) and len(began) <= 2
    assert len(ended) == len(began)
    found = status(plan)
    assert found.pages.get("unsubmitted", 0) == 4 - len(began)
    assert found.pages.get("interrupted", 0) == len(began)
    assert (
        all(step.retry for step in found.steps) and found.rows["done"] == Measured.select().count()
    )
    again = resume(plan, options={"hold": True})
    assert again.pages == 4
    with connection():
        texts = [p.retries for p in Page.select() if p.retries]
    assert {end["state"] for text in texts for end in json.loads(text)} <= {"HOURS"}


@pytest.mark.slurm
@pytest.mark.postgres
def test_a_throttle_is_that_of_all_arrays_together(slurm, monkeypatch):
    """Five arrays and a throttle of 3: the first three share it, the others wait for those."""
    monkeypatch.setattr("astra.slurm.limits.max_array_size", lambda _: 5)
    plan = plan_of(20, 1)
    done = submit(plan, options={"throttle": 3, "hold": True})
    assert [job.array.partition("%")[2] for job in done.jobs] == ["1"] * 5
    waits = _dependencies(slurm)
    first, second, third, fourth, fifth = (str(job.job_id) for job in done.jobs)
    assert first in waits[fourth] and second in waits[fifth] and waits[third] == "(null)"
    assert Submission.select().count() == 5


@pytest.mark.slurm
@pytest.mark.postgres
def test_a_throttle_is_that_of_arrays_with_different_options(slurm):
    """As where a resume gives some of the pages more memory."""
    options = {"throttle": 1, "mem": "100M"}, {"throttle": 3, "mem": "200M"}
    profiles = [choose_profile(None, {**values, "hold": True}) for values in options]
    groups = list(zip(profiles, ({1: 1, 2: 1}, {3: 1, 4: 1}), strict=True))
    done = submit_pages(get_plan(plan_of(4, 1)), groups, {})
    assert (done.pages, done.rows, done.unsubmitted, done.message) == (4, 4, 0, None)
    assert [job.array.partition("%")[2] for job in done.jobs] == ["1", "1"]
    first, second = (str(job.job_id) for job in done.jobs)
    assert first in _dependencies(slurm)[second]
    dry = submit_pages(get_plan(plan_of(4, 1)), groups, {}, dry_run=True)
    assert [job.array for job in dry.jobs] == [job.array for job in done.jobs]


@pytest.mark.slurm
@pytest.mark.postgres
@pytest.mark.parametrize("sign", [",", "?"])
def test_an_array_waits_for_the_one_before_whatever_its_profile_waits_for(slurm, monkeypatch, sign):
    """Where any of several jobs is enough for Slurm, the one before would be one more of these."""
    monkeypatch.setattr("astra.slurm.limits.max_array_size", lambda _: 5)
    before = [slurm.run("sbatch", "--parsable", "--hold", "--wrap=true").strip() for _ in range(2)]
    wanted = sign.join(f"afterany:{job}" for job in before)
    done = submit(plan_of(8, 1), options={"throttle": 1, "dependency": wanted})
    first, second = (str(job.job_id) for job in done.jobs)
    waits = _dependencies(slurm)
    assert all(job in waits[first] for job in before)
    assert first in waits[second] and "?" not in waits[second]


def _dependencies(slurm) -> dict[str, str]:
    lines = slurm.run("squeue", "-h", "-o", "%A %E").splitlines()
    return dict(line.split(maxsplit=1) for line in lines)
