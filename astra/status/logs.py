"""Find the log file of an attempt."""

import os
import tarfile
import zlib
from collections.abc import Collection
from itertools import islice
from pathlib import Path

from peewee import ModelSelect

from astra.config.run_folder import run_folder
from astra.database.connection import connection, dialect
from astra.errors import UsageError
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import get_plan
from astra.records import dataclass
from astra.states import ALIVE, AttemptState
from astra.status.page_states import current_pages


@dataclass(frozen=True)
class Log:
    """The log of one attempt of a page.

    Examples
    --------
    >>> from astra.api import logs
    >>> [log.attempt for log in logs(1, page=2)]
    [1]
    """

    page: int  #: number of the page
    attempt: int  #: from 1; 0 where the element ended before it claimed the page
    state: str  #: how the attempt ended, or that it is running
    job: str | None  #: Slurm's job and array index; None without Slurm
    host: str  #: the machine that it ran on
    path: str | None  #: the file; None where it printed to a terminal
    message: str | None = None  #: why the attempt ended, if it did not end well


def logs(plan: int, page: int | None = None) -> list[Log]:
    """Return the attempts of a plan, or of one page, with their files; the latest last.

    Parameters
    ----------
    plan : int
        Number of the plan.
    page : int, optional
        Number of the page; default all pages.

    Returns
    -------
    list of Log
        One for each attempt.

    Raises
    ------
    UsageError
        If the plan has no such page, or the page has no attempt yet.

    Examples
    --------
    >>> from astra.api import logs
    >>> [(log.page, log.state) for log in logs(1)]
    [(1, 'done'), (2, 'done')]
    """
    frozen = get_plan(plan)
    with connection():
        query = _attempts().where(Page.plan == frozen.pk).order_by(Page.number, Attempt.number)
        if page is not None:
            if not 1 <= page <= frozen.n_pages:
                raise UsageError(f"plan {plan} has pages 1 to {frozen.n_pages}, not {page}")
            query = query.where(Page.number == page)
        listed = [_log(attempt) for attempt in query]
        if page is not None and (unclaimed := _unclaimed(frozen, page)):
            listed.append(unclaimed)
    return listed or _before_any_claim(frozen, page)


#: How many logs of elements that ended before they claimed a page are listed at most: usually they
#: are all alike.
_UNCLAIMED = 20


def _before_any_claim(plan: Plan, page: int | None) -> list[Log]:
    """Return the first logs of elements that all ended before they claimed a page."""
    statuses = current_pages(plan)
    ended = [s for s in statuses if page in (None, s.page) and s.state not in ALIVE and s.job]
    with connection():
        logs_ = (_unclaimed(plan, status.page) for status in ended)
        if first_logs := list(islice(filter(None, logs_), _UNCLAIMED)):
            return first_logs
    which = f"page {page} of plan {plan.pk}" if page else f"plan {plan.pk}"
    if reason := next(
        (s.reason for s in ended if s.reason), "its element ended" if ended else None
    ):
        raise UsageError(f"there is no log of {which}: {reason}")
    raise UsageError(f"no element has begun {which} yet: astra status {plan.pk}")


def has_ended(plan: int, log: Log) -> bool:
    """Return whether the attempt that writes a log has ended, by its record or by Slurm."""
    if log.attempt:
        last = logs(plan, log.page)[-1]
        if last.attempt != log.attempt or last.state != AttemptState.RUNNING:
            return True
    page = next(s for s in current_pages(get_plan(plan)) if s.page == log.page)
    return page.state not in ALIVE


def log_paths(attempts: Collection[int]) -> dict[int, str]:
    """Return the log files of attempts, by their primary keys, as far as they are known."""
    query = _attempts().where(dialect().among(Attempt.pk, attempts))
    with connection():
        paths = {attempt.pk: _log(attempt).path for attempt in query} if attempts else {}
    return {pk: path for pk, path in paths.items() if path}


def _attempts() -> "ModelSelect[Attempt]":
    """Return the query of attempts with the columns that say where their logs are."""
    return (
        Attempt.select(Attempt, Page, Submission)
        .join(Page)
        .switch(Attempt)
        .join(Submission, on=(Submission.pk == Attempt.submission_pk), attr="submission")
    )


def path_of(plan: int, log: Log) -> Path | None:
    """Return the file of an attempt's log, which must be in its plan's folder.

    Elements write the path into the database: a role that may do so could name any file.

    Raises
    ------
    UsageError
        If it lies elsewhere.
    """
    if log.path is None:
        return None
    path, folder = Path(log.path), run_folder(get_plan(plan).folder).resolve()
    if not path.resolve().is_relative_to(folder):
        raise UsageError(
            f"the log of page {log.page} is recorded as {path}, which is not below {folder}, the "
            "folder of its plan: it is not opened; set [run] dir to that of the user who submitted "
            "it"
        )
    return path


def text_of(plan: int, log: Log) -> str:
    """Return what an attempt printed, even if its plan's folder has been packed.

    Raises
    ------
    UsageError
        If the file is not on this machine, or not in the plan's folder.
    """
    if log.path is None:
        reason = f"; it ended as {log.state}: {log.message}" if log.message else ""
        return f"page {log.page} has no log, as its attempt printed to a terminal{reason}\n"
    if (path := path_of(plan, log)) is not None:
        if os.path.isfile(path):
            return path.read_text(errors="replace")
        if (text := _packed(path)) is not None:
            return text
    owner = path is not None and not os.access(run_folder(get_plan(plan).folder), os.X_OK)
    reason = ", or only its owner may read it" if owner else ""
    raise UsageError(f"the log of page {log.page} is not on this machine{reason}: {log.path}")


def _packed(path: Path) -> str | None:
    """Read a file of a plan's folder from the archive that clean.py made of it."""
    folder = path.parent.parent
    archive = folder.with_name(f"{folder.name}.tar.gz") if folder.name else folder
    if not os.path.isfile(archive):
        return None
    name = str(path.relative_to(folder.parent))
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(name) if name in tar.getnames() else None
            return file.read().decode(errors="replace") if file else None
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UsageError(f"{archive} cannot be read: {error}") from error


def _unclaimed(plan: Plan, number: int) -> Log | None:
    """Return the log of an element that started and ended before it claimed its page."""
    page = Page.get((Page.plan == plan.pk) & (Page.number == number))
    submission = Submission.get_or_none(Submission.pk == page.submission_pk)
    if submission is None or submission.log_folder is None:
        return None
    element = submission.element_of(number)
    of_page = Attempt.page == page.pk
    if page.free is not None:  # its element may have taken another page
        of_page |= Attempt.element == element
    if Attempt.select().where(of_page & (Attempt.submission_pk == submission.pk)).exists():
        return None
    job = f"{submission.job_id}_{element - submission.offset}"
    path = Path(submission.log_folder) / f"{job}.log"
    return Log(number, 0, "unclaimed", job, "", str(path)) if os.path.isfile(path) else None


def _log(attempt: Attempt) -> Log:
    path = attempt.log
    if path is None and attempt.job_id is not None and attempt.submission.log_folder:
        name = f"{attempt.job_id}_{attempt.array_index}.log"
        path = str(Path(attempt.submission.log_folder) / name)
    job = f"{attempt.job_id}_{attempt.array_index}" if attempt.job_id else None
    page, message = attempt.page.number, attempt.message
    return Log(page, attempt.number, attempt.state, job, attempt.host, path, message)
