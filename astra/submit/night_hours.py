"""The hours of a night: when elements may begin, and when they must have ended.

They are fixed as moments when the night begins, so that no node's time zone matters, and compared
with the clock of the database, so that no node's clock does. An element that starts too late gives
back the pages that no element of its array has begun, as if they had not been submitted. An element
that runs at the end is asked to stop, and uses up no retry.
"""

import logging
import os
from dataclasses import dataclass
from datetime import datetime

from peewee import fn

from astra.database.connection import connection, dialect, retrying, writing
from astra.errors import AstraError, OutOfHours
from astra.models.attempts import Attempt
from astra.models.plans import N_PENDING, Page, Submission
from astra.policy.next_steps import ends_as_stored, ends_of
from astra.slurm import client
from astra.slurm.parse import JobId

log = logging.getLogger(__name__)


#: Elements are asked to stop at most this long before the end, to store their rows, in s.
LEAD_S = 60


@dataclass(frozen=True)
class Hours:
    """Moments by the clock of the database, in seconds since the epoch; None for no bound."""

    start_until: int | None = None
    drain_by: int | None = None

    def open(self) -> bool:
        """Return whether elements may begin now."""
        return self.start_until is None or _now() < self.start_until

    @property
    def stop_at(self) -> int | None:
        """Return when running elements are asked to stop."""
        if self.drain_by is None:
            return None
        between = self.drain_by - (self.start_until or 0)
        return self.drain_by - (LEAD_S if between >= LEAD_S else between // 4)


ALWAYS = Hours()


def _now() -> float:
    with connection():
        return dialect().now().timestamp()


def hours_from_now(start_until: str | None, drain_by: str | None) -> Hours:
    """Return the hours of a night that begins now, by this machine's clock and time zone."""
    now = datetime.now()
    hours = next_hours(start_until, drain_by, now)
    ahead_s = round(_now() - now.timestamp())
    return Hours(*(at and at + ahead_s for at in (hours.start_until, hours.drain_by)))


def next_hours(start_until: str | None, drain_by: str | None, now: datetime) -> Hours:
    """Return the hours of a night that begins now, from times of day of this machine's clock.

    >>> from datetime import datetime as moment
    >>> hours = next_hours("06:30", "07:00", moment(2026, 11, 24, 20, 0))
    >>> moment.fromtimestamp(hours.start_until), moment.fromtimestamp(hours.drain_by)
    (datetime.datetime(2026, 11, 25, 6, 30), datetime.datetime(2026, 11, 25, 7, 0))
    """
    first = start_until or drain_by
    if first is None:
        return ALWAYS
    start = _next(first, int(now.timestamp()) + 1)
    if drain_by is None:
        return Hours(start)
    if start_until is None:  # an element that began later could not be asked to stop before
        return Hours(start - LEAD_S, start)
    return Hours(start, start if drain_by == first else _next(drain_by, start))


def _next(clock: str, since: int) -> int:
    """Return the first moment from `since` on at which this machine's clock shows or skips `clock`.

    The search goes minute by minute, as the clock may be put forward or back in between.
    """
    hour, minute = map(int, clock.split(":"))
    moment = -(-since // 60) * 60
    while True:
        before, now = datetime.fromtimestamp(moment - 60), datetime.fromtimestamp(moment)
        wanted = [day.replace(hour=hour, minute=minute) for day in (before, now)]
        if now in wanted or any(before < time < now for time in wanted):
            return moment
        moment += 60


def begin(start_until: int | None, token: str) -> float:
    """Check that an element may begin; if it is too late, give back the pages of its array.

    Returns
    -------
    float
        The time by the clock of the database, in seconds since the epoch.

    Raises
    ------
    OutOfHours
        If it is too late; the retry policy recognizes the exit status.
    """
    now = retrying(_now)
    if start_until is None or now < start_until:
        return now
    n_pages = retrying(lambda: _give_back(token))
    _cancel_waiting()
    raise OutOfHours(
        f"the hours of the night are over: no page is begun, and {n_pages} pages count as not "
        "submitted; the next night, or astra resume, takes them"
    )


def _give_back(token: str) -> int:
    """Take back the pages of a submission that none of its attempts has claimed; count them."""
    with writing():
        if (submission := Submission.get_or_none(Submission.token == token)) is None:
            return 0  # its plan was removed
        begun = Attempt.select().where(
            (Attempt.page == Page.pk) & (Attempt.submission_pk == submission.pk)
        )
        pages = Page.select(Page.pk, Page.attempt_pk, Page.retries, Page.n_rows).where(
            (Page.submission_pk == submission.pk) & (N_PENDING > 0) & ~fn.EXISTS(begun)
        )
        n_pages = 0
        for page in list(pages):
            n_pages += Page.update(**_before(page)).where(
                (Page.pk == page.pk) & (Page.submission_pk == submission.pk)
            ).execute()  # fmt: skip
        return n_pages


def _before(page: Page) -> dict[str, object]:
    """Return the columns of a page before its submission, without the retry that did not start."""
    last = Attempt.get_or_none(Attempt.pk == page.attempt_pk) if page.attempt_pk else None
    if last is None:
        return {"submission_pk": None, "free": None}
    ends = ends_of(page)[:-1]
    retries = ends_as_stored(ends) if ends else None
    pulled = Submission.select().where((Submission.pk == last.submission_pk) & Submission.pulls)
    free = True if pulled.exists() else None
    return {"submission_pk": last.submission_pk, "free": free, "retries": retries}


def _cancel_waiting() -> None:
    """Cancel the waiting elements of this array, which would do the same."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    if job is None:
        return
    try:
        job_id = JobId(int(job), name=os.environ.get("SLURM_JOB_NAME"))
        client.cancel(job_id, waiting_only=True)
    except AstraError as error:
        log.warning(
            "waiting elements of job %s could not be cancelled; they will start and do nothing: %s",
            job,
            error,
        )
