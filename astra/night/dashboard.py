"""Keep a folder of static pages up to date: one page for each recent or active plan and night.

Nothing is stored elsewhere: each page contains a mark of the state that it shows, so that the page
of an ended plan is written once, whichever process updates the folder. Pages are replaced
atomically, and only if more has changed than the time at which they were written; the index always,
so that its time is that of the last update.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Generic

from astra.config.run_folder import write_whole
from astra.database.connection import drop_connection, is_away
from astra.errors import AstraError, UsageError
from astra.models.archive import Archive
from astra.models.table_checks import current_tables
from astra.night.history import NightStatus, nights
from astra.night.report import report_of_night
from astra.records import dataclass
from astra.report.format import count, first_line, unbroken
from astra.report.page import html, render
from astra.report.report import Report, report_of
from astra.report.tables import Cell, Columns, Item, Table, moment, number, table
from astra.status.plans import PlanLine, all_plans

log = logging.getLogger(__name__)

N_NIGHTS = 30

KEEP_DAYS = 30  # for which the pages of ended plans stay

#: Pages, and the files that a process leaves if it is killed while it writes one.
_OWN_FILES = re.compile(r"(?:plan|night)-\d+\.html|\.[0-9a-f]{16}")
_MARK = re.compile(r'<meta name="astra-of" content="([^"]*)">')
_TITLE = re.compile(r"<title>([^:<]*):")
_MADE = re.compile(r'<p class="soft made">.*?</p>')

INDEX = "index.html"


@dataclass
class Update:
    """The pages that one update wrote and removed, and what it could not do."""

    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Line(Generic[Item]):
    """A plan or a night in the index, with its page and its state."""

    page: str
    item: Item
    kind: str


@dataclass(frozen=True)
class Dashboard:
    """The folder with the pages of an archive."""

    folder: Path

    def update(self) -> Update:
        """Write the pages that have changed, and remove those that are too old.

        Raises
        ------
        UsageError
            If the folder cannot be written, or holds the pages of another archive.
        DatabaseError
            If the database gives no answer.
        """
        with current_tables():
            archive = Archive.select().first()
        mark = archive.identifier if archive else ""
        self._prepare(mark)
        update, since = Update(), datetime.now(UTC) - timedelta(days=KEEP_DAYS)
        of_nights = [self._night(night, update) for night in nights(None, N_NIGHTS)]
        of_plans = [self._plan(plan, update) for plan in all_plans() if self._is_shown(plan, since)]
        pages = {line.page for line in of_nights} | {line.page for line in of_plans}
        self._remove_old(pages, since, update)
        text = render(
            "index.html.j2", mark=mark, notes=update.problems, nights=_nights_table(of_nights),
            living=_plans_table(line for line in of_plans if line.item.is_live),
            ended=_plans_table(line for line in of_plans if not line.item.is_live),
            made=datetime.now(UTC),
        )  # fmt: skip
        write_whole(self.folder / INDEX, text, 0o644)
        return update

    def _prepare(self, archive: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{self.folder} cannot be created: {error.strerror}; name another folder"
            ) from error
        owner = _mark(self.folder / INDEX)
        if owner is not None and owner != archive:
            raise UsageError(
                f"{self.folder} contains the pages of another archive ({owner}; this one is "
                f"{archive}): name another folder, or remove its {INDEX}"
            )

    def _is_shown(self, plan: PlanLine, since: datetime) -> bool:
        """Return whether a plan is live or recent, or has a page that is recent or out of date."""
        if plan.is_live or plan.created >= since:
            return True
        path = self.folder / _page(plan)
        mark = _mark(path)
        return mark is not None and (mark != _plan_mark(plan) or _modified(path) >= since)

    def _plan(self, plan: PlanLine, update: Update) -> _Line[PlanLine]:
        page, mark = _page(plan), _plan_mark(plan)
        kind = self._update_page(page, mark, plan.is_live, update, lambda: report_of([plan.plan]))
        return _Line(page, plan, kind)

    def _night(self, night: NightStatus, update: Update) -> _Line[NightStatus]:
        def report() -> Report:
            return report_of_night(night.name, str(night.night))[1]

        page = f"night-{night.night}.html"
        mark = f"night {night.night}: {night.state}, {night.pending} of {night.rows}"
        return _Line(
            page, night, self._update_page(page, mark, night.ended is None, update, report)
        )

    def _update_page(
        self, page: str, mark: str, lives: bool, update: Update, make: Callable[[], Report]
    ) -> str:
        """Write a page if it is not up to date; return the state that the page shows."""
        if lives or _mark(self.folder / page) != mark:
            try:
                self._write(page, html(make(), mark), update)
            except AstraError as error:
                if is_away(error):
                    raise
                update.problems.append(f"{page} cannot be written: {error}")
        match = _TITLE.search(_head(self.folder / page))
        return match[1] if match else "unknown"

    def _write(self, page: str, text: str, update: Update) -> None:
        path = self.folder / page
        with suppress(OSError, ValueError):
            if _MADE.sub("", path.read_text()) == _MADE.sub("", text):
                return
        write_whole(path, text, 0o644)
        update.written.append(page)

    def _remove_old(self, current: set[str], since: datetime, update: Update) -> None:
        """Remove old pages of ended plans and nights, and unfinished files of killed processes."""
        for path in self.folder.iterdir():
            if path.name in current or not _OWN_FILES.fullmatch(path.name):
                continue
            with suppress(FileNotFoundError):
                if _modified(path) < since:
                    path.unlink()
                    update.removed.append(path.name)


def keep_up_to_date(dashboard: Dashboard) -> Iterator[Update]:
    """Update a folder again and again, and yield what changed: nothing without the database.

    Raises
    ------
    AstraError
        If an update fails for another reason than a database that is temporarily unavailable.
    """
    while True:
        try:
            yield dashboard.update()
        except Exception as error:
            if not is_away(error):
                raise
            drop_connection()
            reason = first_line(str(error))
            log.warning("the database is unavailable, and the pages are not updated: %s", reason)
            yield Update()


def _plan_mark(plan: PlanLine) -> str:
    names = ("done", "failed", "no_result", "pending")
    counts = ", ".join(f"{getattr(plan, name)} {name}" for name in names)
    return f"plan {plan.plan}: {counts}{', cancelled' if plan.cancelled else ''}"


def _page(plan: PlanLine) -> str:
    return f"plan-{plan.plan}.html"


def _head(path: Path) -> str:
    with suppress(OSError), path.open(errors="replace") as file:
        return file.read(8192)
    return ""


def _mark(path: Path) -> str | None:
    """Return the mark of a page; None if the file is missing, or is not one of these pages."""
    match = _MARK.search(_head(path))
    return match[1] if match else None


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _nights_table(lines: Iterable[_Line[NightStatus]]) -> Table | None:
    columns: Columns[_Line[NightStatus]] = {
        "night": lambda line: Cell(line.item.name, href=line.page),
        "date": lambda line: line.item.date,
        "state": lambda line: Cell(line.item.state, kind=line.kind),
        "rows": lambda line: number(line.item.rows, count),
        "results": lambda line: number(line.item.results, count),
        "failures": lambda line: number(line.item.failures, count),
        "not ended": lambda line: number(line.item.pending, count),
        "retries": lambda line: number(line.item.retries, count),
        "began": lambda line: moment(line.item.began),
        "lasted": lambda line: number(_lasted_s(line.item), unbroken),
    }
    return table(lines, columns)


def _lasted_s(night: NightStatus) -> float | None:
    return (night.ended - night.began).total_seconds() if night.ended else None


def _plans_table(lines: Iterable[_Line[PlanLine]]) -> Table | None:
    columns: Columns[_Line[PlanLine]] = {
        "plan": lambda line: Cell(str(line.item.plan), line.item.plan, line.page),
        "task": lambda line: line.item.task,
        "input": lambda line: line.item.input_model,
        "state": lambda line: Cell(line.kind, kind=line.kind),
        "rows": lambda line: number(line.item.rows, count),
        "results": lambda line: number(line.item.done, count),
        "failures": lambda line: number(line.item.failed, count),
        "not ended": lambda line: number(line.item.pending, count),
        "created": lambda line: moment(line.item.created),
        "by": lambda line: line.item.by,
    }
    return table(lines, columns)
