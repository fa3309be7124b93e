"""Take over pages of a pool whose element ended without releasing them.

An element that finds no free page while others of its pool still run some becomes the pool's
watcher, if there is none. It regularly checks the attempts that hold pages, and releases the pages
of those that are dead, so that elements of the pool continue them without a resume.

An attempt is dead if Slurm says that its element has ended; Slurm is asked rarely. If Slurm does
not say, it is dead if its heartbeat has not changed while the watcher checked it, without a gap,
for a whole lease. So an outage, after which every heartbeat is old, makes no attempt look dead:
each that is alive writes a heartbeat as soon as the database is back. A takeover succeeds only if
the heartbeat is still the one that was read. Like any later attempt, it fences the earlier one: an
attempt that is alive after all can write nothing more.

While a watcher has time left, elements that have not started are not needed. They are cancelled:
each would start, find nothing to do, and end.
"""

import logging
import os
import socket
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from peewee import SQL, ColumnBase

from astra.config import profiles, retry_rules, settings
from astra.database.connection import dialect, writing
from astra.element.claiming import suspect_rows
from astra.element.page_pool import cancel_waiting, left_in, may_have_waiting
from astra.element.pause_checks import is_throttled
from astra.errors import ConfigError
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.processes import elements_here, is_here, is_running, now_s, process_start_s
from astra.results.stopping import Stop
from astra.states import HELD, AttemptState, SlurmState

if TYPE_CHECKING:
    from astra.slurm.parse import Answer

log = logging.getLogger(__name__)

# Times in leases.
_CHECK_LEASES = 1 / 100  # the longest pause between two checks of the heartbeats
_FIRST_QUERY_LEASES = 1 / 150  # until Slurm is first queried, once by one element of a pool
_QUERY_LEASES = 1 / 5  # between two queries
#: After a query without an answer, which may have taken minutes: the heartbeats are watched for a
#: whole lease without a gap.
_UNANSWERED_LEASES = 5 / 4

#: The shortest pause between two checks: a check costs a connection and 10 ms of the processor.
_SHORTEST_PAUSE_S = 0.25

#: How many leases a watcher waits for an attempt without a heartbeat that runs according to Slurm:
#: it takes Slurm minutes to notice that a node has crashed, but a suspension may last for days.
_SUSPENDED_LEASES = 3

#: A watcher that has not checked for this many of its longest pauses is gone.
_GONE_PAUSES = 4

#: A watcher that has not checked for this many of its longest pauses may be gone: an element that
#: finds no page waits until that is known.
_OVERDUE_PAUSES = 2

#: How an attempt ended if nothing else is known of its end.
_SILENT = "its heartbeat stopped"

#: Ends that a retry with the same memory and time would probably repeat. After such an end a page
#: is taken over once; then it waits for a resume, which gives more memory or time.
_ONCE = frozenset({SlurmState.OUT_OF_MEMORY, SlurmState.TIMEOUT})


class Watcher:
    """Check the pages that other elements of a pool hold, again and again."""

    def __init__(self, plan: Plan, submission: Submission, element: int, stop: Stop) -> None:
        self.plan, self.submission, self.element, self.stop = plan, submission, element, stop
        self.lease_s = settings.current().element.lease_s
        self.began_s = self.checked_s = time.monotonic()
        # When Slurm may be asked.
        self.next_query_s = self.began_s + self.lease_s * _FIRST_QUERY_LEASES
        self.unchanged: dict[int, tuple[datetime, float]] = {}  # attempt: heartbeat, and since when
        self.alive: set[int] = set()  # attempts of elements that Slurm last reported as alive
        self.given_up: set[int] = set()  # attempts whose pages wait for a resume
        self.may_cancel = may_have_waiting(submission)
        self._is_own = Submission.token == submission.token  # a clause
        self.watches = False  # whether this is the pool's watcher
        self.is_throttled = False  # pages are free, but only for others

    def wait(self, end_s: float | None) -> bool:
        """Wait until a page of the pool is free; return False if none will be, or another watches.

        Parameters
        ----------
        end_s : when the element has no time for one more page, by :func:`~astra.processes.now_s`.
        """
        is_free = None
        while not self.stop.is_wanted and (end_s is None or now_s() < end_s):
            if (is_free := self._check()) is not None:
                break
            self._cancel_waiting(end_s)
            pause_s = max((time.monotonic() - self.began_s) / 10, _SHORTEST_PAUSE_S)
            self.stop.wanted.wait(min(pause_s, self.lease_s * _CHECK_LEASES))
        self._resign()
        return bool(is_free)

    def _cancel_waiting(self, end_s: float | None) -> None:
        """Cancel the elements that have not started, once, if half of this one's time is left."""
        if not self.may_cancel or not self.watches or self.is_throttled:
            return
        self.may_cancel = False
        left_s = float("inf") if end_s is None else end_s - now_s()
        if left_s > now_s() - process_start_s(os.getppid()):
            self.stop.retrying(lambda: cancel_waiting(self.submission))

    def _check(self) -> bool | None:
        """Return whether a page is free; None if it is worthwhile to check again."""
        is_free, held = self.stop.retrying(self._read)
        held = [attempt for attempt in held if attempt.pk not in self.given_up]
        if not held:
            return is_free
        self._observe(held)
        released = [self._take_over(attempt, end) for attempt, end in self._dead(held)]
        return True if any(released) else None

    def _read(self) -> tuple[bool | None, list[Attempt]]:
        """Return whether a page is free, as :meth:`_check` does, and the attempts that hold pages.

        There are none of these unless this element is the watcher.
        """
        is_unfinished = left_in(self.submission.pk)
        holds_page = (Attempt.submission_pk == self.submission.pk) & Attempt.state.in_(HELD)
        held = (
            Attempt.select(
                Attempt.pk, Attempt.page, Attempt.state, Attempt.seen, Attempt.host, Attempt.pid,
                Attempt.pid_began, Attempt.array_index, Attempt.number, Attempt.element,
            )
            .join(Page, on=Page.attempt_pk == Attempt.pk)
            .where(is_unfinished & holds_page & ~Page.free)  # NULL: it was withdrawn
        )  # fmt: skip
        is_active = Plan.paused.is_null() & Plan.cancelled.is_null()
        if Plan.select(Plan.pk).join(Submission).where(self._is_own & is_active).scalar() is None:
            return False, []
        free_page = Page.select(Page.pk).where(is_unfinished & Page.free).limit(1).scalar()
        is_free = free_page is not None
        self.is_throttled = is_free and is_throttled(self.plan, self.submission, self.element)
        if is_free and not self.is_throttled:
            return True, []
        attempts = list(held)
        if not attempts and not is_free:
            return False, []
        self.watches = self._become_watcher()
        if not self.watches:
            return self._is_watched(), []
        # Pages that are free only for others may become free for this element.
        return None if self.is_throttled else False, attempts

    def _become_watcher(self) -> bool:
        """Become or remain the pool's watcher; return False if another element is."""
        is_ours = (Submission.watcher == self.element) | Submission.watcher.is_null()
        with writing():
            watched = Submission.update(watcher=self.element, watched=SQL(dialect().now_sql)).where(
                self._is_own & (is_ours | self._unwatched_for(_GONE_PAUSES))
            )
            return bool(watched.execute())

    def _unwatched_for(self, n_pauses: int) -> ColumnBase:
        """Return a clause: the watcher has not checked for this many of its longest pauses."""
        silent_s = n_pauses * max(self.lease_s * _CHECK_LEASES, 1.0)
        return Submission.watched < dialect().now() - timedelta(seconds=silent_s)

    def _is_watched(self) -> bool | None:
        """Return False if another element watches; None if it is overdue, and may be gone."""
        overdue = self._is_own & self._unwatched_for(_OVERDUE_PAUSES)
        return None if Submission.select(Submission.pk).where(overdue).scalar() else False

    def _resign(self) -> None:
        """Leave the watch to others: this element takes a page, or ends."""
        if self.watches:
            is_watcher = Submission.watcher == self.element
            resign = Submission.update(watcher=None).where(self._is_own & is_watcher)
            self.stop.retrying(resign.execute)

    def _observe(self, held: Iterable[Attempt]) -> None:
        """Note since when each heartbeat has not changed; start again after a gap in the checks."""
        now = time.monotonic()
        if now - self.checked_s > self.lease_s / 4:  # the database was away, or this process slept
            self.unchanged.clear()
        self.checked_s = now
        for attempt in held:
            last = self.unchanged.get(attempt.pk)
            if last is None or last[0] != attempt.seen:
                self.unchanged[attempt.pk] = (attempt.seen, now)

    def _dead(self, held: list[Attempt]) -> list[tuple[Attempt, SlurmState | str]]:
        """Return the attempts whose process has ended, each with what is known of its end."""
        if self.submission.kind != "slurm":
            here = socket.gethostname()
            self.given_up |= {a.pk for a in held if a.host != here or not is_here(a.pid_began)}
            local = [a for a in held if a.pk not in self.given_up]
            ended = [a for a in local if not is_running(a.pid, a.pid_began)]
            alive = elements_here(self.submission.token) if ended else set()
            # An earlier process of this element crashed, and this one was not given its page.
            alive.discard(self.element)
            return [(a, "its process is gone") for a in ended if a.element not in alive]
        answer = self._query_slurm()
        dead: list[tuple[Attempt, SlurmState | str]] = []
        for attempt in held:
            found = answer.of(self.submission.job_name, attempt.array_index) if answer else None
            state = found.state if found else None
            if found and (found.is_completing or state is SlurmState.PENDING):
                # Slurm requeued it, or is ending it, which never completes if its node has crashed.
                self.alive.discard(attempt.pk)
            elif state is SlurmState.RUNNING:
                self.alive.add(attempt.pk)
            elif state is not None:
                dead.append((attempt, state))
                continue
            # Only until the heartbeats were read: Slurm may have taken minutes to answer since.
            silent_s = self.checked_s - self.unchanged[attempt.pk][1]
            if attempt.pk not in self.alive and silent_s > self.lease_s:
                dead.append((attempt, _SILENT))
            elif silent_s > self.lease_s * _SUSPENDED_LEASES:
                self.given_up.add(attempt.pk)
        return dead

    def _query_slurm(self) -> "Answer | None":
        """Return Slurm's states of the pool's elements; None if it was not queried or is silent."""
        from astra.slurm import client, command  # imported here, as few elements need it

        if time.monotonic() < self.next_query_s or not command.available():
            return None
        answer = client.elements([self.submission.job])
        pause = _QUERY_LEASES if answer.queue else _UNANSWERED_LEASES
        self.next_query_s = time.monotonic() + self.lease_s * pause
        if self.submission.job_name in answer.queued:
            return answer
        if answer.queue:  # the controller has lost its state: sacct calls all its jobs cancelled
            self.alive.clear()
        return None

    def _take_over(self, attempt: Attempt, end: SlurmState | str) -> bool:
        """Release the page of a dead attempt; return False if it was released too often, or the
        attempt is alive."""
        state = end if isinstance(end, SlurmState) and end is not SlurmState.ABSENT else None
        reason = f"Slurm: {state}" if state else str(_SILENT if end is SlurmState.ABSENT else end)

        def take() -> bool:
            with writing():
                if _n_taken_over(attempt, self.submission) >= _allowed(state, self.submission):
                    self.given_up.add(attempt.pk)
                    return False
                ended = Attempt.update(
                    state=AttemptState.SUPERSEDED.value,
                    ended=SQL(dialect().now_sql),
                    slurm_state=state,
                    message=f"ended without a record ({reason}); a watcher released its page",
                ).where(
                    (Attempt.pk == attempt.pk)
                    & Attempt.state.in_(HELD)
                    & (Attempt.seen == attempt.seen)
                )
                if not ended.execute():
                    return False
                # No row is blamed if it is unknown how the attempt ended.
                if state is not None or self.submission.kind != "slurm":
                    suspect_rows(Page.get_by_id(attempt.page_pk), Attempt.get_by_id(attempt.pk))
                release = Page.update(free=True).where(
                    (Page.pk == attempt.page_pk)
                    & (Page.submission_pk == self.submission.pk)
                    & (Page.attempt_pk == attempt.pk)
                )
                return bool(release.execute())

        released = self.stop.retrying(take)
        if released:
            log.warning("attempt %d of a page ended (%s): the page is free", attempt.number, reason)
        return released


def _n_taken_over(attempt: Attempt, submission: Submission) -> int:
    """Return how often attempts of the pool at a page were superseded, as those taken over are."""
    return int(
        Attempt.select()
        .where(
            (Attempt.page == attempt.page_pk)
            & (Attempt.submission_pk == submission.pk)
            & (Attempt.state == AttemptState.SUPERSEDED.value)
        )
        .count()
    )


def _allowed(state: SlurmState | None, submission: Submission) -> int:
    """Return how often a pool may take a page over, by how its last attempt ended."""
    config, name = settings.current(), submission.stored_profile.get("name")
    try:
        of_profile = profiles.get(name, config).policy if name else {}
    except ConfigError:  # it was renamed
        of_profile = {}
    rules = retry_rules.rules(config.rules, of_profile)
    retries = rules[state.value if state in rules else SlurmState.NODE_FAIL.value].retries
    return min(retries, 1) if state in _ONCE else retries
