"""Take over pages of a pool whose element ended without releasing them.

An element that finds no free page while others of its pool still run some becomes the pool's
watcher, if there is none. It looks at the holders of pages again and again, and frees the pages of
those that are dead, so that elements of the pool go on with them without anybody's resume.

A holder is dead if Slurm says that its element has ended; Slurm is asked rarely. Where Slurm does
not say, it is dead if its heartbeat has not changed while the watcher looked, without a gap, for a
whole lease. So an outage, after which every heartbeat is old, makes nobody look dead: whoever lives
writes one as soon as the database is back. Each takeover is conditional on the heartbeat that was
read, and fences like any later attempt: a holder that lives after all can write no more.

With a watcher that has time left, elements that have not begun are not needed. They are cancelled:
each would start, find nothing to do, and end.
"""

import logging
import os
import socket
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from peewee import SQL

from astra.config import retry_rules, settings
from astra.database.connection import dialect, retrying, writing
from astra.element.claim import suspect_rows
from astra.element.pool import cancel_waiting, left_in, may_have_waiting
from astra.models.attempts import Attempt
from astra.models.plans import Page, Plan, Submission
from astra.processes import born_s, now_s, process_began
from astra.results.stopping import Stop
from astra.states import AttemptState, SlurmState

if TYPE_CHECKING:
    from astra.slurm.parse import Answer

log = logging.getLogger(__name__)

#: Shares of the lease: how long between two looks at most, until Slurm is first asked, and between
#: two questions to it.
_LOOK, _FIRST_QUESTION, _QUESTION = 1 / 100, 1 / 30, 1 / 5

#: Seconds between two looks, at least: a look costs a connection and 10 ms of the processor.
_SOONEST_S = 0.25

#: A watcher that has not looked for so many of its longest pauses is gone.
_GONE = 4

#: So soon, in seconds, an element's parent has recorded its child's crash, and started another.
_RESTART_S = 3.0

#: The end of an attempt of which nothing else is known.
_SILENT = "its heartbeat stopped"

#: Ends that a second try on the same terms does not change: one takeover, and then a person's or
#: the night's resume, which gives more memory or time.
_ONCE = frozenset({SlurmState.OUT_OF_MEMORY, SlurmState.TIMEOUT})

_HELD = (AttemptState.RUNNING.value, AttemptState.DIED.value)


class Watcher:
    """One look after the other at the pages that other elements of a pool hold."""

    def __init__(self, plan: Plan, submission: Submission, element: int, stop: Stop) -> None:
        self.plan, self.submission, self.element, self.stop = plan, submission, element, stop
        self.lease_s = settings.current().element.lease_s
        self.began_s = self.looked_s = time.monotonic()
        self.asks_s = self.began_s + self.lease_s * _FIRST_QUESTION  # when Slurm may be asked
        self.unchanged: dict[int, tuple[datetime, float]] = {}  # attempt: heartbeat, and since when
        self.gone: dict[int, float] = {}  # attempts whose process ended here, and since when
        self.alive: set[int] = set()  # attempts of elements that Slurm last called alive
        self.given_up: set[int] = set()  # attempts whose pages wait for a resume
        self.may_cancel = may_have_waiting(submission)

    def wait(self, end_s: float | None) -> bool:
        """Wait until a page of the pool is free; False if none will be, or another one watches.

        Parameters
        ----------
        end_s : when the element has no time for one more page, by :func:`~astra.processes.now_s`.
        """
        while not self.stop.wanted.is_set() and (end_s is None or now_s() < end_s):
            is_free = self._look()
            if is_free is not None:
                return is_free
            self._cancel_waiting(end_s)
            waited_s = time.monotonic() - self.began_s
            self.stop.wanted.wait(min(max(waited_s / 10, _SOONEST_S), self.lease_s * _LOOK))
        return False

    def _cancel_waiting(self, end_s: float | None) -> None:
        """Cancel the elements that have not begun, once, if half of this one's time is left."""
        now, self.may_cancel, may = now_s(), False, self.may_cancel
        if may and (end_s is None or end_s - now > now - born_s(os.getppid())):
            retrying(lambda: cancel_waiting(self.submission), waiting=self.stop.wanted)

    def _look(self) -> bool | None:
        """Whether a page is free; None if it is worth while to look again."""
        watches, is_free, held = retrying(self._read, waiting=self.stop.wanted)
        held = [attempt for attempt in held if attempt.pk not in self.given_up]
        if is_free or not watches or not held:
            return is_free and watches
        self._observe(held)
        freed = [self._take(attempt, word) for attempt, word in self._dead(held)]
        return True if any(freed) else None

    def _read(self) -> tuple[bool, bool, list[Attempt]]:
        """Whether this watches, whether a page is free, and the attempts that hold others."""
        left = left_in(self.submission)
        held = (
            Attempt.select(
                Attempt.pk, Attempt.page, Attempt.state, Attempt.seen, Attempt.host, Attempt.pid,
                Attempt.pid_began, Attempt.array_index, Attempt.number,
            )
            .join(Page, on=Page.attempt_pk == Attempt.pk)
            .where(left & (Attempt.submission_pk == self.submission.pk) & Attempt.state.in_(_HELD))
        )  # fmt: skip
        goes_on = Plan.paused.is_null() & Plan.cancelled.is_null()
        if Plan.select(Plan.pk).where((Plan.pk == self.plan.pk) & goes_on).scalar() is None:
            return False, False, []
        if Page.select(Page.pk).where(left & Page.free).limit(1).scalar() is not None:
            return True, True, []
        attempts = list(held)
        return bool(attempts) and self._stay(), False, attempts

    def _stay(self) -> bool:
        """Be the pool's watcher, unless another element is; whether this one is."""
        gone_s = _GONE * max(self.lease_s * _LOOK, 1.0)
        before = dialect().now() - timedelta(seconds=gone_s)
        ours = (Submission.watcher == self.element) | Submission.watcher.is_null()
        with writing():
            watched = Submission.update(watcher=self.element, watched=SQL(dialect().now_sql)).where(
                (Submission.pk == self.submission.pk) & (ours | (Submission.watched < before))
            )
            return bool(watched.execute())

    def _observe(self, held: Iterable[Attempt]) -> None:
        """Note since when each heartbeat has stayed the same, as far as this process looked on."""
        now = time.monotonic()
        if now - self.looked_s > self.lease_s / 4:  # the database was away, or this process slept
            self.unchanged.clear()
        self.looked_s = now
        for attempt in held:
            known = self.unchanged.get(attempt.pk)
            if known is None or known[0] != attempt.seen:
                self.unchanged[attempt.pk] = (attempt.seen, now)

    def _dead(self, held: list[Attempt]) -> list[tuple[Attempt, SlurmState | str]]:
        """The attempts whose process has ended, each with what is known of its end."""
        if self.submission.kind != "slurm":
            self.given_up |= {a.pk for a in held if a.host != socket.gethostname()}
            here = [a for a in held if a.pk not in self.given_up]
            gone = [a for a in here if process_began(a.pid) != a.pid_began]
            return [(a, "its process is gone") for a in gone if self._is_old_news(a)]
        answer = self._asked()
        dead: list[tuple[Attempt, SlurmState | str]] = []
        for attempt in held:
            state = (
                answer.of(self.submission.job_name, attempt.array_index).state if answer else None
            )
            if state is not None and state.alive:
                self.alive.add(attempt.pk)
            elif state is not None:
                dead.append((attempt, state))
                continue
            if time.monotonic() - self.unchanged[attempt.pk][1] <= self.lease_s:
                continue
            if attempt.pk in self.alive:  # it is suspended, perhaps: nobody waits for that
                self.given_up.add(attempt.pk)
            else:
                dead.append((attempt, _SILENT))
        return dead

    def _is_old_news(self, attempt: Attempt) -> bool:
        """Whether a process has been gone for so long that its parent starts no other instead."""
        since_s = self.gone.setdefault(attempt.pk, time.monotonic())
        return time.monotonic() - since_s > _RESTART_S

    def _asked(self) -> "Answer | None":
        """What Slurm says of the pool's elements; None if it is not asked now, or cannot be."""
        from astra.slurm import client, command  # here, as other elements need none of it

        if time.monotonic() < self.asks_s or not command.available():
            return None
        self.asks_s = time.monotonic() + self.lease_s * _QUESTION
        answer = client.elements([self.submission.job])
        return answer if answer.queue else None

    def _take(self, attempt: Attempt, word: SlurmState | str) -> bool:
        """Free the page of a dead attempt, unless it was freed too often, or the attempt lives."""
        state = word if isinstance(word, SlurmState) and word is not SlurmState.ABSENT else None
        why = f"Slurm: {state}" if state else str(_SILENT if word is SlurmState.ABSENT else word)

        def take() -> bool:
            with writing():
                if _n_taken_over(attempt, self.submission) >= _allowed(state):
                    self.given_up.add(attempt.pk)
                    return False
                ended = Attempt.update(
                    state=AttemptState.SUPERSEDED.value,
                    ended=SQL(dialect().now_sql),
                    slurm_state=state,
                    message=f"ended without a record ({why}); a watcher released its page",
                ).where(
                    (Attempt.pk == attempt.pk)
                    & Attempt.state.in_(_HELD)
                    & (Attempt.seen == attempt.seen)
                )
                if not ended.execute():
                    return False
                # No row is blamed for an end that is not known.
                if state is not None or self.submission.kind != "slurm":
                    suspect_rows(Page.get_by_id(attempt.page_pk), Attempt.get_by_id(attempt.pk))
                freed = Page.update(free=True).where(
                    (Page.pk == attempt.page_pk)
                    & (Page.submission_pk == self.submission.pk)
                    & (Page.attempt_pk == attempt.pk)
                )
                return bool(freed.execute())

        freed = retrying(take, waiting=self.stop.wanted)
        if freed:
            log.warning("attempt %d of a page ended (%s): the page is free", attempt.number, why)
        return freed


def _n_taken_over(attempt: Attempt, submission: Submission) -> int:
    """How many elements of the pool have died over the page before."""
    return int(
        Attempt.select()
        .where(
            (Attempt.page == attempt.page_pk)
            & (Attempt.submission_pk == submission.pk)
            & (Attempt.state == AttemptState.SUPERSEDED.value)
        )
        .count()
    )


def _allowed(state: SlurmState | None) -> int:
    """How many elements of one pool may die over a page, by the last one's end."""
    if state in _ONCE:
        return 1
    rules = retry_rules.rules(settings.current().rules)
    return rules[state.value if state in rules else SlurmState.NODE_FAIL.value].retries
