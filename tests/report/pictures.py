"""Take pictures of the report and the index: ``python -m tests.report.pictures FOLDER``.

The report in five states, and the index of a folder of pages, each at three widths, light and dark,
for people to look at. It takes a minute.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from playwright.sync_api import Browser

WIDTHS = (400, 800, 1400)
SCHEMES = ("light", "dark")


def _planned(n: int, limit: int, **arguments: object) -> int:
    from astra.plan.plan import create_plan
    from tests.sample_tasks import fill, measure

    fill(n)
    (made,) = create_plan(measure, "BossVisitSpectrum", limit=limit, arguments=arguments)
    return made.plan


def _run(plan: int) -> None:
    """Run a plan, and have its attempts look as if four nodes had taken an hour."""
    from astra.api import run_here
    from astra.models.attempts import Attempt
    from astra.models.plans import Page

    run_here(plan)
    began = datetime.now(UTC) - timedelta(hours=2)
    for attempt in Attempt.select(Attempt, Page).join(Page).where(Page.plan == plan):
        place = attempt.page.number - 1
        lasted = timedelta(seconds=120 + place * 37 % 90)
        start = began + timedelta(seconds=place // 4 * 180 + place % 4 * 11)
        Attempt.update(
            host=f"node{place % 4 + 1}", began=start, seen=start + lasted, ended=start + lasted,
            t_task_s=lasted.total_seconds() * 0.9, t_read_s=4.0, t_write_s=6.0,
        ).where(Attempt.pk == attempt.pk).execute()  # fmt: skip


def _in_trouble(plan: int) -> None:
    from astra.models.attempts import Attempt
    from astra.models.plans import Page

    stuck = [page.pk for page in Page.select().where(Page.plan == plan) if page.number % 7 == 3]
    Page.update(n_done=0, n_failed=0, n_no_result=0).where(Page.pk << stuck).execute()
    Attempt.update(state="interrupted", message="asked to stop by SIGTERM, 31 rows stored").where(
        Attempt.page << stuck
    ).execute()


def reports() -> Iterator[tuple[str, str]]:
    """Yield the five states by name, each with its page."""
    from astra.report.page import html
    from astra.report.report import report_of
    from astra.report.usage import Efficiency, _gauge

    def gauges() -> Efficiency:
        used = [(900 + 37 * n % 2400, 4000) for n in range(40)]
        times = [(3600 + 97 * n % 5000, 36000) for n in range(40)]
        cpu = [(0.3 * seconds, seconds) for seconds, _ in times]
        found = [
            _gauge("CPU", "CPU s", cpu),
            _gauge("memory", "MB", used),
            _gauge("time", "s", times),
        ]
        return Efficiency(tuple(g for g in found if g), 64.0)

    one = _planned(1200, 30)
    _run(one)
    yield "whole", html(replace(report_of([one]), efficiency=gauges()))
    some = _planned(1200, 30, raise_every=31, null_every=57, nothing_every=50)
    _run(some)
    yield "failed-rows", html(report_of([some]))
    _in_trouble(some)
    yield "attention", html(report_of([some]))
    yield "not-begun", html(report_of([_planned(500, 50)]))
    slow = _planned(800, 20, row_s=0.02)
    command = [sys.executable, "-m", "astra", "submit", str(slow), "--local", "-j", "2"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    report = report_of([slow])
    while running.poll() is None and report.rows.get("done", 0) < 300:
        report = report_of([slow])
    yield "running", html(report)
    running.wait()


def take(browser: Browser, name: str, file: Path, folder: Path) -> None:
    for width in WIDTHS:
        for scheme in SCHEMES:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            page.goto(f"file://{file}")
            page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
            page.close()


def main(folder: Path) -> None:
    from astra.models.nights import Night, NightPlan
    from astra.models.schema import init_database
    from astra.night.dashboard import Dashboard
    from tests.report.browser import chromium

    init_database(("tests.sample_tasks",))
    folder.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for name, text in reports():
            file = Path(f"{name}.html").absolute()
            file.write_text(text)
            take(browser, name, file, folder)
        common = {"date": "2026-11-24", "cwd": "/", "host": "login1", "created_by": "me"}
        began = datetime.now(UTC) - timedelta(hours=9)
        ended = {"began": began, "ended": datetime.now(UTC), **common}
        of_plan = {"task": "tests.sample_tasks.measure", "n_rows": 2400}
        for name, state, n_failed in (("survey", "whole", 0), ("weekly", "failed rows", 48)):
            pk = Night.create(name=name, state=state, **ended).pk
            NightPlan.create(night=pk, n_done=2400 - n_failed, n_failed=n_failed, **of_plan)
        running = Night.create(name="survey", **common).pk
        NightPlan.create(night=running, plan_pk=4, **of_plan)
        Dashboard(Path("www")).update()
        take(browser, "index", Path("www/index.html").absolute(), folder)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "pictures").absolute()
    with tempfile.TemporaryDirectory() as place:
        os.environ["ASTRA_DATABASE_URL"] = f"sqlite:///{place}/astra.db"
        os.environ["ASTRA_RUN_DIR"] = f"{place}/runs"
        os.environ["PYTHONPATH"] = os.getcwd()
        os.chdir(place)
        main(out)
