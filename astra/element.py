"""One element: claims its pages, one after the other, and runs the task over their rows.

No connection to the database is held while the task computes: a page is claimed, a chunk of rows
read, and a checkpoint written, each in a connection of its own.
"""

import importlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from peewee import SQL, PeeweeException

from astra import config, log, spool
from astra.arguments import restored
from astra.database import (
    HURRY_S,
    abandon_transaction,
    aside,
    at_hand,
    begun_aside,
    dialect,
    retrying,
    writing,
)
from astra.errors import (
    AstraError,
    BrokenElement,
    BusyError,
    DatabaseError,
    Interrupted,
    OutOfMemory,
    Superseded,
    UsageError,
)
from astra.guard import Guard
from astra.measures import now_s, peak_mb
from astra.models.orchestration import Attempt, Page, Plan, Submission
from astra.models.spectrum import pixel_columns
from astra.patience import hurry
from astra.pending import has_result, key_of, rows_with_source
from astra.plan import check_plan_version, get_plan, release, task_of
from astra.resolve import load
from astra.results import Claim, Handed, Refusal, clean, words_of
from astra.run import Run, Stop, Tally
from astra.spool import claim_of, target_of
from astra.states import AttemptState, Outcome, SlurmState
from astra.supervise import Board
from astra.suspects import CERTAIN, KILLED, OUT_OF_MEMORY, Death, record_death, suspects_of
from astra.tasks import bind_call, caller

#: Rows that are read at a time, at most; bytes of arrays in them; rows before their size is known.
CHUNK, CHUNK_BYTES, FIRST_CHUNK = 500, 4_000_000, 32
#: Rows that a new attempt is taken to have in hand, until it says more, and seconds of work that
#: it says beforehand: what is looked through when it ends without a word.
FIRST_IN_HAND, IN_HAND_S = 64, 5.0


@dataclass(frozen=True)
class Where:
    """The process and the Slurm element that an attempt runs in."""

    host: str
    pid: int
    pid_began: str | None
    job_id: int | None = None
    array_index: int | None = None
    restarts: int = 0
    log: str | None = None


def here(kind: str) -> Where:
    """Where this process runs; for a submission to Slurm, as Slurm's environment says.

    A local run inside somebody's job is no element of that job.
    """
    slurms = os.environ if kind == "slurm" else {}
    job = slurms.get("SLURM_ARRAY_JOB_ID")
    index = slurms.get("SLURM_ARRAY_TASK_ID")
    return Where(
        host=slurms.get("SLURMD_NODENAME") or socket.gethostname(),
        pid=os.getpid(),
        pid_began=process_began(os.getpid()),
        job_id=int(job) if job else None,
        array_index=int(index) if index else None,
        restarts=int(slurms.get("SLURM_RESTART_COUNT") or 0),
        log=_own_log(),
    )


def process_began(pid: int) -> str | None:
    """When a process of this machine began, in ticks since the machine did; None if it is gone.

    Tells a process from a later one of the same number (proc(5), field 22 of stat).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else fields[19]


def _own_log() -> str | None:
    """The file that this process prints to, if it is one."""
    try:
        target = os.readlink("/proc/self/fd/1")
    except OSError:
        return None
    return target if target.startswith("/") and os.path.isfile(target) else None


@dataclass(frozen=True)
class PageRun:
    """How one page fared in this element."""

    page: int
    state: str
    rows: int
    done: int
    failed: int
    no_result: int
    message: str | None = None
    exit_status: int = 0


def run_element(
    plan_pk: int,
    element: int,
    token: str,
    stop: Stop | None = None,
    board: Board | None = None,
) -> list[PageRun]:
    """Run the pages of one element of a submission, each until its rows have ended.

    Raises
    ------
    UsageError
        If the plan is of another version, or the submission is not of this plan.
    """
    stop = stop or Stop()
    with _signals(stop):
        with at_hand():
            plan = retrying(lambda: get_plan(plan_pk))
            check_plan_version(plan)
            submission = retrying(lambda: Submission.get_or_none(Submission.token == token))
        if submission is None or submission.plan_pk != plan.pk:
            raise UsageError(f"plan {plan_pk} has no submission {token!r}")
        each = submission.pages_per_element
        first = (element - 1) * each + 1
        runs = []
        tally = new_tally()
        for number in range(first, min(first + each, plan.n_pages + 1)):
            runs.append(run_page(plan, number, submission, element, stop, board, tally))
            if stop.wanted.is_set():
                break
        return runs


def new_tally() -> Tally:
    """The count of one element's rows."""
    element = config.current().element
    return Tally(element.max_failures, element.max_failures_after)


def run_page(
    plan: Plan,
    number: int,
    submission: Submission,
    element: int,
    stop: Stop,
    board: Board | None = None,
    tally: Tally | None = None,
) -> PageRun:
    """Claim a page and run the task over the rows that it still needs."""
    # Of an element's first page, what its process took to get here counts as start-up, too.
    since_s, began_s = board.take_birth() if board else None, now_s()
    try:
        # What an earlier attempt computed and could not store is not computed again.
        spool.recover(plan, number)
        with at_hand():
            claim = retrying(
                lambda: claim_page(plan, number, submission, element, here(submission.kind))
            )
    except (Superseded, BusyError) as error:
        log.warning("%s", error)
        return PageRun(number, "refused", 0, 0, 0, 0, str(error), error.exit_status)
    if claim is None:
        page = retrying(lambda: _page(plan, number))
        return _page_run(page, AttemptState.DONE)
    if board is not None:
        board.begin(claim.page.pk, claim.attempt.pk, claim.positions)
    meter = Meter(began_s if since_s is None else since_s, board)
    claim.measures = meter.read
    try:
        state, message, status = _run_claimed(plan, claim, meter, stop, board, tally or new_tally())
    except OutOfMemory as error:
        if board is not None:  # the other process starts this one anew, and takes it from there
            board.out_of_memory()
        else:
            _end(claim, AttemptState.BROKEN, clean(str(error), 2000))
        state, message, status = AttemptState.BROKEN, str(error), error.exit_status
    except AstraError as error:
        state, message, status = _ended_by(error), str(error), error.exit_status
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        _end(claim, AttemptState.BROKEN, clean(text, 2000))
        raise
    try:
        page = retrying(lambda: _page(plan, number), waiting=stop.wanted)
    except DatabaseError:
        page = claim.page
    return _page_run(page, state, message, status)


def _ended_by(error: AstraError) -> AttemptState:
    if isinstance(error, Superseded):
        return AttemptState.SUPERSEDED
    return AttemptState.INTERRUPTED if isinstance(error, Interrupted) else AttemptState.BROKEN


def _page(plan: Plan, number: int) -> Page:
    return Page.get((Page.plan == plan.pk) & (Page.number == number))


def _page_run(page: Page, state: str, message: str | None = None, status: int = 0) -> PageRun:
    return PageRun(
        page.number, state, page.n_rows, page.n_done, page.n_failed, page.n_no_result,
        message, status,
    )  # fmt: skip


# ------------------------------------------------------------------------------------ claiming


def claim_page(
    plan: Plan, number: int, submission: Submission, element: int, where: Where
) -> Claim | None:
    """Make this process the one attempt that may write the page; None if the page is whole.

    Raises
    ------
    Superseded
        If the page belongs to another submission, or to the first array of this one.
    BusyError
        If another attempt of the same submission lives.
    """
    with writing():
        _bind_array(submission, where)
        page = _page(plan, number)
        if page.n_pending == 0:
            return None
        if is_cancelled(plan.pk):
            raise Superseded(f"plan {plan.pk} was cancelled")
        if page.submission_pk != submission.pk:
            raise Superseded(
                f"page {number} of plan {plan.pk} was given to submission {page.submission_pk} "
                f"since this one ({submission.pk}) was submitted; nothing is done here"
            )
        _supersede(page, submission, where)
        suspected = {s.key for s in suspects_of(page.pk)}
        last = Attempt.select(Attempt.number).where(Attempt.page == page.pk)
        attempt = Attempt.create(
            page=page.pk,
            submission_pk=submission.pk,
            number=(last.order_by(Attempt.number.desc()).limit(1).scalar() or 0) + 1,
            element=element,
            state=AttemptState.RUNNING.value,
            n_handed=_place_after(page, suspected, FIRST_IN_HAND),
            **{k: getattr(where, k) for k in where.__dataclass_fields__},
        )
        seen = Page.attempt_pk == page.attempt_pk if page.attempt_pk else Page.attempt_pk.is_null()
        changed = (
            Page.update(attempt_pk=attempt.pk)
            .where((Page.pk == page.pk) & seen & (Page.submission_pk == submission.pk))
            .execute()
        )
        if changed != 1:
            raise BusyError(f"page {number} of plan {plan.pk} was claimed by another attempt")
        # Read once more: what the attempt before wrote up to this moment counts.
        page = Page.get_by_id(page.pk)
    if is_cancelled(plan.pk):
        # Meanwhile: another plan may have taken the rows before this attempt was seen to run.
        with writing():
            release([attempt], "the plan was cancelled as it began")
        raise Superseded(f"plan {plan.pk} was cancelled")
    return claim_of(page, attempt)


def is_cancelled(plan_pk: int) -> bool:
    return Plan.select(Plan.cancelled).where(Plan.pk == plan_pk).scalar() is not None


def _place_after(page: Page, suspected: set[int], n_rows: int) -> int:
    """The place behind the first `n_rows` of a page that are to be handed over."""
    for place, outcome in enumerate(page.outcomes):
        if outcome == Outcome.PENDING and page.keys[place] not in suspected:
            n_rows -= 1
            if n_rows < 0:
                return place
    return int(page.n_rows)


def _bind_array(submission: Submission, where: Where) -> None:
    """The first array to start is the one of its submission: a second one does nothing."""
    if where.job_id is None:
        return
    Submission.update(job_id=where.job_id, state="submitted").where(
        (Submission.pk == submission.pk) & Submission.job_id.is_null()
    ).execute()
    job_id = Submission.select(Submission.job_id).where(Submission.pk == submission.pk).scalar()
    if job_id != where.job_id:
        raise Superseded(
            f"job {where.job_id} is a second array for the pages of job {job_id}; nothing is done "
            f"here: scancel {where.job_id}"
        )


def _supersede(page: Page, submission: Submission, where: Where) -> None:
    """End the attempt that still stands as running, if it may be ended."""
    old = Attempt.get_or_none(Attempt.pk == page.attempt_pk) if page.attempt_pk else None
    if old is None or old.state != AttemptState.RUNNING:
        return
    same_submission = old.submission_pk == submission.pk
    requeued = (
        where.job_id is not None
        and (old.job_id, old.array_index) == (where.job_id, where.array_index)
        and where.restarts > old.restarts
    )
    silent_s = (dialect().now() - old.seen).total_seconds()
    dead_here = old.host == where.host and process_began(old.pid) != old.pid_began
    overdue = silent_s > config.current().element.lease_s
    if same_submission and not (requeued or overdue or dead_here):
        raise BusyError(
            f"page {page.number} of plan {page.plan_pk} is run by attempt {old.number} "
            f"(process {old.pid} on {old.host}), last heard of {silent_s:.0f} s ago"
        )
    if not requeued:
        _suspect(page, old)
    Attempt.update(
        state=AttemptState.SUPERSEDED.value,
        ended=SQL(dialect().now_sql),
        message="taken over by a later attempt",
    ).where(Attempt.pk == old.pk).execute()


#: Slurm's words for ends that no row brought about.
_NO_ROWS_DOING = frozenset(
    {
        SlurmState.NODE_FAIL.value, SlurmState.BOOT_FAIL.value, SlurmState.PREEMPTED.value,
        SlurmState.CANCELLED.value, SlurmState.DEADLINE.value,
    }
)  # fmt: skip


def _suspect(page: Page, old: Attempt) -> None:
    """An attempt ended without a word: remember the rows that its task may have had in hand."""
    if old.n_handed < 0 or old.slurm_state in _NO_ROWS_DOING:
        return
    known = {s.key: s.group for s in suspects_of(page.pk)}
    keys = [
        key
        for place, key in enumerate(page.keys)
        if page.outcomes[place] == Outcome.PENDING
        and (
            known.get(key) == old.group if old.group else place < old.n_handed and key not in known
        )
    ]
    if old.slurm_state == SlurmState.OUT_OF_MEMORY:
        death = Death(OUT_OF_MEMORY, "ran out of memory (Slurm: OUT_OF_MEMORY)")
    else:
        word = f" (Slurm: {old.slurm_state})" if old.slurm_state else ""
        death = Death(KILLED, f"was in hand when its process ended without a word{word}")
    record_death(page.pk, keys, death)


# ------------------------------------------------------------------------------------- running


class Meter:
    """What an attempt has measured of itself: written with each checkpoint, and at its end."""

    def __init__(self, since_s: float, board: Board | None) -> None:
        self.since_s, self.board = since_s, board  # when what leads to the first row began
        self.first_s: float | None = None  # when the task was given its first row
        self.run: Run | None = None
        self.reader: Reader | None = None

    def first_row(self) -> None:
        """The task is about to be given a row, its first or a later one."""
        if self.first_s is None:
            self.first_s = now_s()
            if self.board is not None:  # should the process die before a checkpoint
                self.board.started(self.first_s - self.since_s)

    def read(self) -> dict[str, Any]:
        """Columns of the attempt, as of now."""
        found: dict[str, Any] = {"max_rss_mb": peak_mb()}
        if self.run is not None and self.reader is not None:
            found |= {
                "t_task_s": self.run.t_task_s,
                "t_write_s": self.run.t_write_s,
                "t_read_s": self.reader.t_read_s,
                "row_times": str(self.run.row_times) or None,
            }
        if self.first_s is not None:
            found["t_start_s"] = self.first_s - self.since_s
            found["t_rows_s"] = now_s() - self.first_s
        return found


def _run_claimed(
    plan: Plan, claim: Claim, meter: Meter, stop: Stop, board: Board | None, tally: Tally
) -> tuple[AttemptState, str | None, int]:
    element = config.current().element
    try:
        function, model = task_of(plan), load(plan.input_model)
        output = load(plan.output_model)
        # A row that raises costs itself, unless the plan itself says otherwise.
        values = {"re_raise_exceptions": False, **restored(function, json.loads(plan.arguments))}
        defaults = {"write_frequency": element.write_frequency, "batch_size": element.batch_size}
        settings, bound = bind_call(function, (iter(()),), values, defaults)
        outer = outer_exceptions(element.outer_exceptions)
    except AstraError as error:
        _end(claim, AttemptState.BROKEN, str(error))
        raise BrokenElement(str(error)) from error
    target = target_of(plan, model, output, claim.page.number)
    reader = Reader(model, output, claim, stop, meter)
    run = Run(
        reader,
        caller(function, bound),
        settings,
        target,
        claim=claim,
        again=reader.again,
        stop=stop,
        suspects=reader.groups,
        enters=reader.enter,
        board=board,
        tally=tally,
        outer=outer,
        grace_s=element.grace_s,
        n_rows=sum(1 for outcome in claim.outcomes if outcome == Outcome.PENDING),
        heartbeat=lambda: _heartbeat(claim, stop),
        heartbeat_s=element.lease_s / 4,
    )
    meter.run, meter.reader = run, reader
    reader.give_up(run)
    run.start_heartbeat()
    try:
        try:
            for _ in run:
                pass
        finally:
            if abandon_transaction():
                log.warning("%s left a transaction open: it was rolled back", plan.task)
    except Forced as forced:
        raise _interrupted(claim, forced.reason) from None
    except OutOfMemory:
        raise
    except DatabaseError as error:
        raise _spooled(claim, run, error) from error
    except AstraError as error:
        _end(claim, _ended_by(error), clean(str(error), 2000))
        raise
    except Exception as error:
        said = clean(f"{type(error).__name__}: {words_of(error)}", 2000)
        _end(claim, AttemptState.BROKEN, said)
        raise BrokenElement(said) from error
    if Outcome.PENDING.value in claim.outcomes:
        raise _interrupted(claim, stop.reason or "the task stopped early")
    _end(claim, AttemptState.DONE, run.note)
    return AttemptState.DONE, run.note, 0


def outer_exceptions(paths: Iterable[str]) -> tuple[type[BaseException], ...]:
    """The classes of ``[element] outer_exceptions``; of modules that are never imported, none.

    Raises
    ------
    UsageError
        If a path names no exception.
    """
    found = []
    for path in paths:
        module, _, name = path.rpartition(".")
        try:
            kind = getattr(importlib.import_module(module or "builtins"), name)
        except (ImportError, AttributeError) as error:
            raise UsageError(f"[element] outer_exceptions: {path}: {error}") from error
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise UsageError(f"[element] outer_exceptions: {path} is no class of exceptions")
        found.append(kind)
    return tuple(found)


def _spooled(claim: Claim, run: Run, error: DatabaseError) -> Interrupted:
    """The database stayed away: keep what it did not take in a file."""
    page = f"page {claim.page.number} of plan {claim.page.plan_pk}"
    try:
        path = spool.save(claim, run.unwritten())
    except UsageError as full:
        return Interrupted(f"{page}: {error}; what was yielded is lost, too, and will be computed "
                           f"again: the spool file cannot be written: {full}")  # fmt: skip
    kept = f"{len(run.unwritten())} rows are kept in {path}" if path else "all of it is stored"
    return Interrupted(f"{page}: {error}; {kept}: astra resume {claim.page.plan_pk}")


def _interrupted(claim: Claim, reason: str) -> Interrupted:
    left = claim.outcomes.count(Outcome.PENDING)
    message = f"told to end ({reason}); all that was yielded is stored, {left} rows are left"
    _end(claim, AttemptState.INTERRUPTED, message)
    return Interrupted(f"page {claim.page.number} of plan {claim.page.plan_pk}: {message}")


class Reader:
    """The rows of a page that still need the task, read by chunks, in the page's order.

    Suspects come last, each group by itself; those that have been given up are failures.
    """

    def __init__(self, model: Any, output: Any, claim: Claim, stop: Stop, meter: Meter) -> None:
        self.model, self.output, self.claim, self.stop = model, output, claim, stop
        self.meter = meter
        self.run: Run | None = None
        self.t_read_s = 0.0
        self.pixels = [field.name for field in pixel_columns(model)]
        self.n_chunk = FIRST_CHUNK if self.pixels else CHUNK
        self.n_handed = claim.attempt.n_handed  # places that are said to be in hand
        self.began = time.monotonic()
        self.n_given = 0
        limit = config.current().element.max_deaths
        suspects = [
            s for s in retrying(lambda: suspects_of(claim.page.pk)) if self._is_pending(s.key)
        ]
        self.given_up = {s.key: s for s in suspects if s.deaths >= limit}
        self.group_of = {s.key: s.group for s in suspects if s.deaths < limit}
        by_group: dict[int, list[int]] = {}
        for key, group in self.group_of.items():
            by_group.setdefault(group, []).append(key)
        self.groups = list(by_group.values())

    def _is_pending(self, key: int) -> bool:
        return self.claim.outcomes[self.claim.positions[key]] == Outcome.PENDING

    def give_up(self, run: Run) -> None:
        """Record the rows that ended too many processes as failures."""
        self.run = run
        if not self.given_up:
            return
        key = key_of(self.model)
        query = self.model.select(key, self.model.modified)
        query = query.where(dialect().among(key, list(self.given_up)))
        for k, modified in retrying(lambda: list(query.tuples())):
            suspect = self.given_up[k]
            times = f", {suspect.deaths} times" if 1 < suspect.deaths < CERTAIN else ""
            run.fail(Refusal(k, suspect.exception, f"{suspect.cause}{times}", modified))

    def __iter__(self) -> Iterator[Handed]:
        apart = self.given_up.keys() | self.group_of.keys()
        keys = [k for k in self.claim.positions if self._is_pending(k) and k not in apart]
        for handed in self.again(keys):
            place = self.claim.positions[handed.key]  # type: ignore[index]
            if place >= self.n_handed:
                self._say_in_hand(keys, place)
            self.n_given += 1
            yield handed

    def _say_in_hand(self, keys: list[int], place: int) -> None:
        """Tell the database how far the task will be for the next seconds, as it goes now."""
        rate = self.n_given / max(time.monotonic() - self.began, 1e-3)
        ahead = keys[self.n_given : self.n_given + 1 + int(rate * IN_HAND_S)]
        self.n_handed = max(place, self.claim.positions[ahead[-1]] if ahead else 0) + 1
        self._note(n_handed=self.n_handed)

    def enter(self, keys: list[int]) -> None:
        """A group of suspects is handed over next."""
        self._note(group=self.group_of.get(keys[0]) if keys else None)

    def _note(self, **values: Any) -> None:
        query = Attempt.update(values).where(Attempt.pk == self.claim.attempt.pk)
        try:
            aside(lambda: retrying(query.execute, bound_s=0))
        except (AstraError, PeeweeException) as error:
            log.info("which rows are in hand could not be recorded: %s", error)

    def again(self, keys: list[int]) -> Iterator[Handed]:
        """Rows by their keys, by chunks; the next is read while the task is at the last of one."""
        chunk, keys = keys[: self.n_chunk], keys[self.n_chunk :]
        ahead = begun_aside(lambda chunk=chunk: self._read_patiently(chunk))  # type: ignore[misc]
        while chunk:
            rows, chunk = ahead(), []
            self._choose_chunk(rows)
            if rows:
                self.meter.first_row()
            begin_at = len(rows) - 1 - len(rows) // 8
            for i, handed in enumerate(rows or [None]):
                if i >= begin_at and not chunk and keys:
                    chunk, keys = keys[: self.n_chunk], keys[self.n_chunk :]
                    ahead = begun_aside(lambda chunk=chunk: self._read_patiently(chunk))  # type: ignore[misc]
                if handed is not None:
                    yield handed

    def _choose_chunk(self, rows: list[Handed]) -> None:
        """Read no more at a time than rows of this size fit into :data:`CHUNK_BYTES`."""
        arrays = ([getattr(h.row, name) for name in self.pixels] for h in rows)
        sizes = [sum(array.nbytes for array in found if array is not None) for found in arrays]
        if sizes:
            self.n_chunk = min(max(CHUNK_BYTES // max(*sizes, 1), 1), CHUNK)

    def _read_patiently(self, keys: list[int]) -> list[Handed]:
        return retrying(lambda: self._read(keys), waiting=self.stop.wanted)

    def _read(self, keys: list[int]) -> list[Handed]:
        began = time.perf_counter()
        key = key_of(self.model)
        # The clock first: the rows are at least as recent as it says.
        now = dialect().now()
        query = rows_with_source(self.model).where(dialect().among(key, keys))
        rows = {getattr(row, key.name): row for row in query}
        ended = {
            k
            for (k,) in self.model.select(key)
            .where(dialect().among(key, keys) & has_result(self.model, self.output))
            .tuples()
        }
        self.t_read_s += time.perf_counter() - began
        self._note_ended(ended, [k for k in keys if k not in rows])
        return [
            Handed(k, rows[k], rows[k].modified, now) for k in keys if k in rows and k not in ended
        ]

    def _note_ended(self, ended: set[int], gone: list[int]) -> None:
        """Rows that have an up-to-date result already, or are no more."""
        self.claim.find(ended)
        for k in gone:
            if self.run is not None:
                message = "the input row was deleted after it was planned"
                self.run.fail(Refusal(k, "InputGone", message))


def _heartbeat(claim: Claim, stop: Stop) -> None:
    if is_cancelled(claim.page.plan_pk):
        stop.ask("the plan was cancelled")
    Attempt.update(seen=SQL(dialect().now_sql)).where(Attempt.pk == claim.attempt.pk).execute()


def _end(claim: Claim, state: AttemptState, message: str | None) -> None:
    """Record how the attempt ended, and what it found of the page."""
    now = SQL(dialect().now_sql)
    measured = claim.measures()

    def work() -> None:
        with writing():
            Attempt.update(
                state=state.value,
                ended=now,
                seen=now,
                message=clean(message, 2000) if message else None,
                n_found=claim.n_found,
                **measured,
            ).where(
                (Attempt.pk == claim.attempt.pk) & (Attempt.state == AttemptState.RUNNING.value)
            ).execute()
            # Rows whose result was found, and not written, are in no checkpoint.
            Page.update(
                outcomes=bytes(claim.outcomes),
                n_done=claim.outcomes.count(Outcome.RESULT),
                n_failed=claim.outcomes.count(Outcome.FAILURE),
                n_no_result=claim.outcomes.count(Outcome.NO_RESULT),
            ).where((Page.pk == claim.page.pk) & (Page.attempt_pk == claim.attempt.pk)).execute()

    try:
        retrying(work, bound_s=5 if state is AttemptState.INTERRUPTED else None)
    except DatabaseError as error:
        if state is not AttemptState.INTERRUPTED:
            raise
        # Told to end, there is no time to wait: its rows are stored, its word is not needed.
        log.warning("the end of the attempt could not be recorded: %s", error)


# ------------------------------------------------------------------------------------- signals


class Forced(BaseException):
    """The row in hand did not end in time after the element was told to end."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


@contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """SIGTERM, SIGINT and SIGUSR1 end the element: after the row in hand, or soon after.

    A pipe is written by the C handler itself, so that what waits is stored at once, even while
    the task is deep in a library's code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    grace_s = config.current().element.grace_s
    read, write = os.pipe()
    os.set_blocking(write, False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.ask(signal.Signals(number).name)
        if signal.getitimer(signal.ITIMER_REAL)[0] == 0.0:
            signal.setitimer(signal.ITIMER_REAL, grace_s)

    def on_alarm(number: int, frame: FrameType | None) -> None:
        if _in_own_code(frame):
            signal.setitimer(signal.ITIMER_REAL, 0.1)  # a checkpoint is being written: let it
            return
        raise Forced(stop.reason)

    def watch() -> None:
        while (got := os.read(read, 64)) and not got.startswith(b"\0"):
            for number in got:
                if number in numbers:
                    stop.ask(signal.Signals(number).name)
                    hurry(max(grace_s, HURRY_S))  # a silent database is waited for no longer
                    for run in _runs():
                        run.due.set()

    previous = {n: signal.signal(n, on_signal) for n in numbers}
    previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, on_alarm)
    waker = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread = threading.Thread(target=watch, name="astra signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.set_wakeup_fd(waker)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.write(write, b"\0")
        thread.join()
        os.close(read)
        os.close(write)


def _runs() -> list[Run]:
    return list(Guard.runs)


#: What ends by itself, within a bound, once the process was told to end; cut, it would lose rows.
_UNCUT = {Run.write_all.__code__, Run.flush.__code__}
_UNCUT_MODULES = {"astra.database", "astra.results", "astra.dialects", "astra.spool"}


def _in_own_code(frame: FrameType | None) -> bool:
    """Whether rows are being read, written, waited for to be written, or spooled."""
    while frame is not None:
        if frame.f_code in _UNCUT or frame.f_globals.get("__name__") in _UNCUT_MODULES:
            return True
        frame = frame.f_back
    return False


def reset_rows(page: Page, kinds: tuple[Outcome, ...]) -> int:
    """Make rows of a page that ended in one of these ways pending again; their number."""
    outcomes = bytearray(page.outcomes)
    places = [i for i, outcome in enumerate(outcomes) if outcome in kinds]
    for place in places:
        outcomes[place] = Outcome.PENDING
    if places:
        Page.update(
            outcomes=bytes(outcomes),
            n_failed=outcomes.count(Outcome.FAILURE),
            n_no_result=outcomes.count(Outcome.NO_RESULT),
        ).where((Page.pk == page.pk) & (Page.outcomes == page.outcomes)).execute()
    return len(places)
