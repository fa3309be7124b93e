"""The report: its numbers, its page in a real browser, and what Slurm's accounting says."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page as BrowserPage

from astra.api import run_here
from astra.database.connection import connection, dialect
from astra.models.attempts import Attempt
from astra.models.failures import Failure
from astra.models.plans import Page, Plan
from astra.plan.plan import create_plan
from astra.report.attempts import histogram, mean_over
from astra.report.earlier import earlier_of
from astra.report.format import duration
from astra.report.page import html
from astra.report.report import report_of
from astra.resume.resume import resume
from astra.slurm.parse import Usage, parse_usage
from astra.states import PlanState, SlurmState
from astra.submit.submit import submit
from tests import forks
from tests.report.browser import chromium, show
from tests.sample_tasks import fill, measure
from tests.servers import wait_for

SECRET = "geheim-9731"


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def opened(browser, text: str, folder: Path, width: int = 1400) -> BrowserPage:
    file = folder / "report.html"
    file.write_text(text)
    return show(browser, file, width)


def made(n: int, limit: int, run: bool = True, **arguments) -> int:
    planned = create_plan(measure, "BossVisitSpectrum", limit=limit, arguments=arguments)
    if run:
        run_here(planned[0].plan)
    return planned[0].plan


# ------------------------------------------------------------------------------------- numbers


def test_the_numbers_add_up(url):
    fill(1000)
    plan = made(1000, 100, raise_every=97, nothing_every=50)
    report = report_of([plan])
    assert report.state is PlanState.FAILED_ROWS and report.n_ended == report.n_rows == 1000
    assert report.rows == {"done": 970, "failed": 10, "no result": 20}
    assert report.verdict == "All 1,000 rows have ended, 10 of them as failures."
    why, again = report.next
    assert why == f"astra failures {plan}   shows which rows, and why"
    assert again.startswith(f"astra retry {plan}")
    assert (report.n_attempts, report.retries) == (10, 0)
    assert report.row_times.n == sum(report.row_times.counts) == 970
    assert report.page_times.n == sum(report.page_times.counts) == 10
    stood = np.array(list(report.over_time.series.values()))
    assert np.allclose(stood.sum(axis=0), 10)  # every page stands somehow at all times
    (per_s,) = report.rate.series.values()
    assert sum(per_s) * report.rate.bin_s == pytest.approx(1000, rel=1e-3)
    (kind,) = report.failures
    assert (kind.exception, kind.rows) == ("ValueError", 10) and kind.keys[0] == 97
    assert "row 97 is bad" in kind.traceback and report.failures_elsewhere == 0
    assert [node.rows for node in report.nodes] == [1000]
    slowest = [row.seconds for row in report.slow_rows]
    assert len(slowest) == 15 and slowest == sorted(slowest, reverse=True)
    assert slowest[0] == pytest.approx(report.row_times.maximum)
    assert report.earlier == () and report.this is None


def test_several_plans_are_one_night_and_are_compared(sqlite_url):
    fill(300)
    first = made(300, 100, raise_every=7)
    fill(300)
    second = made(300, 50)
    report = report_of([first, second, first], "night of 24 November")
    assert report.title == "night of 24 November" and report.n_rows == 600
    assert [p.plan for p in report.plans] == [first, second]
    assert report.earlier == ()  # a night is compared with what its caller names
    night = earlier_of([first, second], "the night before")
    assert (night.rows, night.failed, night.pending, night.pages) == (600, 42, 0, 9)
    page = html(report_of([first, second], "night of 24 November", earlier=[night]))
    assert "the night before" in page and "night of 24 November" in page


def test_a_plan_of_which_nothing_ran_says_what_to_type(sqlite_url, browser, tmp_path):
    fill(10)
    plan = made(10, 5, run=False)
    report = report_of([plan])
    assert report.state is PlanState.ATTENTION and report.over_time is None
    assert report.verdict == "None of 10 rows has begun: 2 pages not submitted."
    page = opened(browser, html(report), tmp_path)
    assert page.inner_text(".next code") == f"astra submit {plan} --local" and not page.errors
    page.close()


def test_means_over_bins_are_weighted():
    edges = np.array([0.0, 1.0, 2.0, 4.0]) + 1.8e9
    starts, ends = np.array([0.5, 0.0, 3.0]) + 1.8e9, np.array([1.5, 4.0, 3.0]) + 1.8e9
    assert mean_over(starts, ends, edges) == pytest.approx([1.5, 1.5, 1.0])
    weights = np.array([2.0, 0.0, 5.0])
    assert mean_over(starts, ends, edges, weights) == pytest.approx([1.0, 1.0, 0.0])


def test_a_histogram_holds_every_value():
    values = [0.0, 1e-3, 1.0, 1.0, 59.9, 1e5]
    found = histogram(np.array(values))
    assert sum(found.counts) == found.n == 6 and len(found.edges) == len(found.counts) + 1
    assert found.edges[0] <= 1e-6 and found.edges[-1] >= 1e5 and found.maximum == 1e5
    assert sum(histogram(np.array([1.0])).counts) == 1


def test_durations_are_written_in_words():
    said = [duration(s) for s in (0, 0.0042, 1.5, 75, 3600, 7265, 200_000)]
    assert said == ["0 s", "4.2 ms", "1.5 s", "1 min 15 s", "1 h", "2 h 1 min", "2 d 7 h"]


def test_usage_is_read_from_sacct():
    text = """\
17_1|COMPLETED|100|10|2||4G|01:40.500||
17_1.batch|COMPLETED|100||2|1||01:40.500|2097152K|
17_1.extern|COMPLETED|100||2|2||00:00:00|512K|
17_2|RUNNING|50|10|2||8000M|00:00:00||
17_2.batch|RUNNING|50||2|1||00:00:00|1G|
17_3|TIMEOUT|3600|UNLIMITED|1||4G|1-00:00:01||
17_[4-9]|PENDING|0|10|2||4G|00:00:00||
""".replace("|\n", "|name\n")
    one, two, three = parse_usage(text)
    assert one == Usage(17, 1, SlurmState.COMPLETED, 100, 600, 2, 100.5, 4096, 2048)
    assert (one.cpu_share, one.mem_share) == (0.5025, 0.5) and one.time_share == pytest.approx(
        1 / 6
    )
    assert (two.job, two.mem_requested_mb, two.cpu_share, two.mem_share) == (
        "17_2",
        8000,
        None,
        None,
    )
    assert (three.cpu_s, three.time_share, three.mem_requested_mb) == (86401, None, 4096)


def test_the_command_writes_a_file(sqlite_url, tmp_path):
    fill(20)
    plan = made(20, 10)

    def astra(*words: object) -> subprocess.CompletedProcess:
        return forks.astra("report", *words)

    done = astra()
    assert done.returncode == 0 and done.stdout.startswith("whole: All 20 rows have ended."), done
    assert (tmp_path / f"plan-{plan}.html").read_text().startswith("<!DOCTYPE html>")
    assert astra(plan, "-o", "-").stdout.startswith("<!DOCTYPE html>")
    told = json.loads(astra(plan, "--json").stdout)
    assert (told["state"], told["rows"]["done"], told["row_times"]["n"]) == ("whole", 20, 20)
    missing = astra(77)
    assert missing.returncode == 2 and "there is no plan 77" in missing.stderr
    nowhere = astra(plan, "-o", "no/such/folder.html")
    assert nowhere.returncode == 2 and "cannot be written" in nowhere.stderr


# ---------------------------------------------------------------------------------- in a browser


def in_trouble() -> int:
    """A plan whose failures would break out of the page, and show a password, if they could."""
    fill(400)
    plan = made(400, 20, raise_every=9, nothing_every=50)
    with connection():
        Failure.update(
            message=f"</pre><script>alert(1)</script> at postgresql://me:{SECRET}@host/db",
            traceback="a very long line without a blank " + "x" * 3000,
            place=f"/some/where.py?password={SECRET}",
        ).where(Failure.key == 9).execute()
        Attempt.update(state="interrupted", message="asked to stop " + "y" * 300).where(
            Attempt.pk << [3, 4]
        ).execute()
        Page.update(n_done=0, n_failed=0, n_no_result=0).where(Page.number << [3, 4]).execute()
    return plan


def test_the_report_works_in_a_browser(sqlite_url, browser, tmp_path):
    text = html(report_of([in_trouble()]))
    assert SECRET not in text and "alert(1)</script>" not in text
    page = opened(browser, text, tmp_path)
    assert page.inner_text(".verdict strong") == "Not whole: needs attention"

    fold = page.locator("details", has_text="<script>")
    assert not fold.locator("pre").is_visible()
    fold.locator("summary").click()
    assert fold.locator("pre").is_visible()

    table = page.locator("table", has_text="run time").first
    cells = table.locator("tbody tr td:first-child")
    head = table.locator("th", has_text="key")
    head.locator("button").click()
    up = [int(text) for text in cells.all_inner_texts()]
    assert up == sorted(up) and head.get_attribute("aria-sort") == "ascending"
    head.locator("button").press("Enter")  # by keyboard, too
    assert [int(text) for text in cells.all_inner_texts()] == up[::-1]

    folds = page.locator("details:not([open]) > summary")
    while folds.count():
        folds.first.click()
    for width in (400, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.emulate_media(media="print")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400
    assert page.pdf()[:5] == b"%PDF-"
    assert page.errors == []
    page.close()


def test_without_javascript_all_is_there(sqlite_url, browser, tmp_path):
    (tmp_path / "report.html").write_text(html(report_of([in_trouble()])))
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"file://{tmp_path}/report.html")
    page.locator("summary").first.click()
    assert page.locator("details[open] pre, details[open] table").first.is_visible()
    context.close()


def test_dark_and_light_can_be_read(sqlite_url, browser, tmp_path):
    (tmp_path / "report.html").write_text(html(report_of([in_trouble()])))
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(f"file://{tmp_path}/report.html")
        for place in ("body", ".verdict strong", ".soft", "summary b"):
            assert page.evaluate(_CONTRAST, place) >= 4.5, (scheme, place)  # WCAG 2, level AA
        page.close()


_CONTRAST = """(place) => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = document.querySelector(place);
  let ground = found;
  while (getComputedStyle(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
  const both = [getComputedStyle(found).color, getComputedStyle(ground).backgroundColor].map(light);
  return (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
}"""


def many_pages(n: int) -> int:
    """A plan of `n` pages of ten rows that ran on 200 nodes; every thousandth was asked to stop."""
    fill(10)
    plan = made(10, 10, run=False)
    with connection():
        Plan.update(n_pages=n, n_rows=n * 10).where(Plan.pk == plan).execute()
        dialect().run(
            "INSERT INTO page (plan_pk, number, n_rows, keys, outcomes, n_done, n_failed, n_no_result)"
            " SELECT plan_pk, i, 10, keys, outcomes, CASE WHEN i %% 1000 = 0 THEN 3 ELSE 10 END, 0, 0"
            f" FROM page, generate_series(2, {n}) AS i WHERE plan_pk = {plan}"
        )
        dialect().run(
            "INSERT INTO submission (plan_pk, token, kind, state, job_name, host, elements, "
            '"offset", pages_per_element, pulls, profile, created_by, created) '
            f"SELECT {plan}, 'many', 'local', 'submitted', 'x', 'x', ARRAY[1], 0, 1, false, '{{}}', 'x', "
            "clock_timestamp() - interval '2 days'"
        )
        dialect().run("UPDATE page SET n_done = 10 WHERE number = 1")
        dialect().run("UPDATE page SET submission_pk = (SELECT min(pk) FROM submission)")
        dialect().run(
            "INSERT INTO attempt (token, page_pk, submission_pk, number, element, state, host, pid, began,"
            " seen, ended, n_done, n_failed, n_no_result, t_task_s, t_read_s, t_write_s, restarts, n_handed,"
            " n_found, n_checkpoints, max_rss_mb, message)"
            " SELECT 'x', pk, submission_pk, 1, number, CASE WHEN number %% 1000 = 0 THEN 'interrupted'"
            " ELSE 'done' END, 'node' || number %% 200, 1, at, at, at + d, n_done, 0, 0,"
            " extract(epoch FROM d), 0.1, 0.1, 0, 10, 0, 1, 500, NULL FROM (SELECT *, clock_timestamp()"
            " - interval '1 day' + number * interval '0.5 s' AS at,"
            " (20 + number %% 77) * interval '1 s' AS d FROM page) AS p"
        )
        dialect().run("UPDATE page SET attempt_pk = a.pk FROM attempt a WHERE a.page_pk = page.pk")
    return plan


def test_a_report_of_100_000_pages_stays_small(pg_url, browser, tmp_path):
    plan = many_pages(100_000)
    began = time.monotonic()
    report = report_of([plan])
    gathered_s = time.monotonic() - began
    began = time.monotonic()
    text = html(report)
    drawn_s = time.monotonic() - began
    assert report.n_attention == 100 and len(report.attention) == 100
    assert len(text.encode()) < 2_000_000
    page = opened(browser, text, tmp_path)
    opened_s = (
        page.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") / 1e3
    )
    print(
        f"gathered in {gathered_s:.1f} s, drawn in {drawn_s:.2f} s, {len(text) / 1e3:.0f} kB, opened in {opened_s:.2f} s"
    )
    # What opening costs, whatever else the machine does: it has an element for 50 pages.
    assert page.evaluate("document.querySelectorAll('*').length") < 5000 and not page.errors
    assert page.evaluate("document.documentElement.scrollWidth") == 1400
    page.close()


# ------------------------------------------------------------------------------------- on Slurm


def busy() -> Attempt:
    """An attempt that runs, and has used more than a second of CPU time: 60 rows of 20 ms."""
    query = Attempt.select().where((Attempt.state == "running") & (Attempt.n_done >= 60))
    wait_for(query.exists, "an attempt with 60 rows", 60)
    return query.get()


def calls(tmp_path: Path, monkeypatch) -> Path:
    """A file to which every call of squeue and sacct adds a line."""
    folder = tmp_path / "counted"
    folder.mkdir()
    for name in ("squeue", "sacct", "scontrol"):
        script = folder / name
        script.write_text(
            f'#!/bin/sh\necho {name} >>{folder}/calls\nexec {shutil.which(name)} "$@"\n'
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (folder / "calls").touch()
    return folder / "calls"


def number(text: str) -> float:
    """What reportseff says; three dashes where that is nothing."""
    return 0.0 if text.strip() == "---" else float(text)


@pytest.mark.slurm
@pytest.mark.postgres
def test_efficiency_is_that_of_reportseff(slurm, tmp_path, monkeypatch):
    fill(400)
    (planned,) = create_plan(
        measure, "BossVisitSpectrum", limit=100,
        arguments={"spin_s": 0.02, "raise_every": 50, "write_frequency": 0.5},
    )  # fmt: skip
    # Without pulling, as another element would take the killed one's page over.
    options = {"time": "00:05:00", "mem": "200M", "cpus_per_task": 2, "pull": False}
    (job,) = submit(planned.plan, options=options).jobs
    os.kill(busy().pid, signal.SIGKILL)
    wait_for(slurm.idle, "the end of the array", 180)
    wait_for(
        lambda: (
            len(slurm.accounted(job.job_id)) == 4
            and not {"RUNNING", "PENDING"} & set(slurm.accounted(job.job_id).values())
        ),
        "the accounting",
        60,
    )
    counted = calls(tmp_path, monkeypatch)
    report = report_of([planned.plan])
    # Of a plan that is not whole: what lives, what ended, and what was used.
    assert Counter(counted.read_text().split())["squeue"] == 1
    found = {u.job: u for u in report.efficiency.elements}
    assert len(found) == 4
    columns = "JobID,State,CPUEff,MemEff,TimeEff"
    told = subprocess.run(
        [str(Path(sys.executable).with_name("reportseff")), "--no-color", "--parsable", "--format", columns, str(job.job_id)],
        env=slurm.env(), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line.split("|") for line in told.splitlines() if line.startswith(str(job.job_id))]
    assert len(lines) == 4, told
    for name, state, cpu, mem, limit in lines:
        mine = found[name.strip()]
        assert mine.state == state.strip()
        # reportseff counts whole seconds of CPU time only.
        second = 100 / (mine.elapsed_s * mine.cpus)
        assert -0.1 <= mine.cpu_share * 100 - number(cpu) <= second + 0.1, told
        assert mine.time_share * 100 == pytest.approx(number(limit), abs=0.06), told
        if mine.mem_share is None:
            assert number(mem) == 0, told
        else:
            assert mine.mem_share * 100 == pytest.approx(number(mem), abs=0.06), told
    assert all(number(line[2]) > 0 for line in lines), told  # CPU time that can be compared
    memory = next(g for g in report.efficiency.gauges if g.name == "memory")
    assert 0 < memory.maximum < 1 and memory.requested == 200
    assert report.state is PlanState.ATTENTION and report.n_attention == 1
    assert report.attention[0][1].state == "lost"
    assert report.endings[-1].state == "lost" and report.nodes[0].unsuccessful == 1

    resume(planned.plan)
    wait_for(slurm.idle, "the end of the array", 180)
    counted.write_text("")
    assert report_of([planned.plan]).state is PlanState.FAILED_ROWS
    assert counted.read_text().split() == ["sacct"]  # of a whole plan, the accounting alone


@pytest.mark.parametrize("n_pages", [1, 2])
def test_a_plan_of_one_attempt_has_a_report(sqlite_url, n_pages):
    """Series of one have their types, too."""
    fill(n_pages)
    (planned,) = create_plan(measure, "BossVisitSpectrum", limit=1)
    run_here(planned.plan)
    report = report_of([planned.plan], "a plan")
    assert report.over_time is not None
    assert "Whole" in html(report)
