"""Submission: cut pages into arrays; for each, commit an intent and call sbatch."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from astra.config.profiles import Profile, choose_profile
from astra.config.run_folder import check_folder, run_folder
from astra.database.connection import connection, dialect, keep_connected
from astra.database.threads import in_background
from astra.errors import AstraError, SlurmError, SlurmRefused, UsageError
from astra.models.attempts import excluded_nodes
from astra.models.plans import Plan, Submission
from astra.plan.lookup import check_plan_version, get_plan
from astra.plan.pages import waiting_pages
from astra.slurm import client, limits, parse
from astra.slurm import script as script_module
from astra.slurm.command import available
from astra.submit.arrays import Slice, halves, shares, slices, with_share
from astra.submit.hours import ALWAYS, Hours
from astra.submit.intent import (
    NOBODY,
    Holders,
    adopt,
    commit_intent,
    hold_plan,
    new_submission,
    one_of,
    send,
    withdraw,
)
from astra.submit.render import check_export, render, write_script

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One Slurm array of a submission."""

    job_id: int | None
    array: str  # as passed to sbatch: "1-1000%50"
    offset: int  # page (or element) = array index + offset
    pages: int
    script: str
    text: str | None = None  # the script, in a dry run
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftPages:
    """Pages that the policy does not submit again, and the command that does."""

    pages: tuple[int, ...]
    state: str  # how their elements ended
    explanation: str  # "3 of 3 retries used up"
    remedy: str  # "astra resume 1 --only TIMEOUT --time ..."


@dataclass(frozen=True)
class Submitted:
    """The result of a submission; ``submit`` and ``resume`` of :mod:`astra.api` return it.

    Examples
    --------
    >>> from astra.api import resume_local
    >>> resume_local(1).skipped
    {'done': 2}
    """

    plan: int  #: number of the plan
    task: str  #: name of the task
    pages: int  #: pages that were submitted
    rows: int  #: pending rows of those pages
    jobs: tuple[Job, ...] = ()  #: Slurm arrays
    profile: str | None = None  #: name of the profile
    unsubmitted: int = 0  #: pages left for later, because a limit of Slurm's was reached
    skipped: Mapping[str, int] = field(default_factory=dict)  #: pages that were skipped, by state
    left: tuple[LeftPages, ...] = ()  #: pages that were given up
    message: str | None = None  #: why fewer pages were submitted than requested
    dry_run: bool = False  #: whether nothing was submitted


def submit(
    plan: int,
    profile_name: str | None = None,
    options: Mapping[str, object] | None = None,
    dry_run: bool = False,
    hours: Hours = ALWAYS,
) -> Submitted:
    """Submit the pages of a plan that were not submitted yet, as :func:`astra.api.submit` does.

    A dry run renders the scripts, and stores and submits nothing.
    """
    with keep_connected():
        frozen = get_plan(plan)
        check_ready(frozen, dry_run)
        chosen = choose_profile(profile_name, options)
        # Slurm is queried while the plan is locked and its pages are read.
        obstacles = in_background(lambda: limits.obstacles_to(chosen))
        with hold_plan(frozen):
            with connection():
                pages = waiting_pages(frozen)
            for words in obstacles() if pages else ():
                log.warning("%s", words)
            return submit_pages(frozen, pages, NOBODY, chosen, dry_run, hours)


def check_ready(plan: Plan, dry_run: bool = False) -> None:
    """Refuse a plan that Slurm cannot run now; a dry run works with any database."""
    check_plan_version(plan)
    refuse_cancelled(plan)
    if not dry_run:
        check_shared_database(plan.pk)


def check_shared_database(task_or_plan: object = "TASK") -> None:
    """Refuse a database that elements on other machines cannot use."""
    if dialect().name != "postgresql":
        raise UsageError(
            "elements on other machines cannot share a SQLite file: set ASTRA_DATABASE_URL to a "
            f"PostgreSQL server, or run here: astra submit {task_or_plan} --local"
        )


def refuse_cancelled(plan: Plan) -> None:
    if plan.cancelled is not None:
        raise UsageError(f"plan {plan.pk} was cancelled; its rows can be planned again: astra plan")


def submit_pages(
    plan: Plan,
    pages: Mapping[int, int],
    holders: Holders,
    chosen: Profile,
    dry_run: bool = False,
    hours: Hours = ALWAYS,
) -> Submitted:
    """Submit pages as arrays, one for each slice of MaxArraySize; the plan is locked.

    The arrays share the throttle; an array without a share waits for the end of an earlier one.

    Parameters
    ----------
    pages : the numbers of the pages, and how many pending rows each has.
    holders : the submissions and attempts that the pages belonged to when they were read.
    """
    check_export(chosen)
    if plan.paused is not None and pages and not dry_run:
        paused = f"the plan is paused ({plan.pause_reason}): astra continue {plan.pk}"
        return Submitted(plan.pk, plan.task, 0, 0, unsubmitted=len(pages), message=paused)
    excluded = _excluded(chosen) if pages else ()
    each = chosen.pages_per_element
    queue = list(slices(pages, each, _array_size(dry_run) - 1)) if pages else []
    if queue:
        chosen = replace(chosen, max_elements=-(-chosen.max_elements // len(queue)))
    shared = shares(chosen.throttle, [len(piece.elements) for piece in queue])
    if dry_run:
        message, done = None, list(pages)
        jobs = [
            _dry(plan, piece, _as_sent(with_share(chosen, shared, n), excluded, None), hours)
            for n, piece in enumerate(queue)
        ]
    else:
        if queue:
            check_folder(run_folder(plan.folder) / "logs")
        jobs, done, message = _submit_slices(plan, queue, holders, chosen, shared, excluded, hours)
    return Submitted(
        plan.pk, plan.task, len(done), sum(map(pages.__getitem__, done)), tuple(jobs),
        chosen.name, len(pages) - len(done), message=message, dry_run=dry_run,
    )  # fmt: skip


#: The default of Slurm for MaxArraySize.
_USUAL_ARRAY_SIZE = 1001


def _array_size(dry_run: bool) -> int:
    """Return Slurm's MaxArraySize, or in a dry run without Slurm its default."""
    if dry_run and not available():
        log.warning(
            "Slurm is not installed here: MaxArraySize is assumed to be %d", _USUAL_ARRAY_SIZE
        )
        return _USUAL_ARRAY_SIZE
    return limits.max_array_size()


def _submit_slices(
    plan: Plan,
    queue: list[Slice],
    holders: Holders,
    chosen: Profile,
    shared: list[int],
    excluded: tuple[str, ...],
    hours: Hours,
) -> tuple[list[Job], list[int], str | None]:
    """Call sbatch for each slice; while it runs, commit the next intent.

    Return the jobs, their pages, and the message of Slurm if it accepted no more.
    """
    jobs: list[Job] = []
    done: list[int] = []
    sending: tuple[_Intent, Callable[[], parse.JobId]] | None = None
    try:
        while queue or sending:
            coming = None
            n = len(jobs) + bool(sending)
            behind = n - len(shared) if shared else -1  # the job whose share it waits for
            if queue and behind < len(jobs):
                mine = with_share(chosen, shared, n)
                sent = _as_sent(mine, excluded, jobs[behind] if behind >= 0 else None)
                coming = _intend(plan, queue[0], holders, mine, sent, hours)
            if sending:
                (intent, answer), sending = sending, None
                try:
                    jobs.append(_bind(intent, answer))
                    done += intent.piece.pages
                except AstraError as error:
                    if coming:
                        withdraw(coming.submission, "absent", f"not sent after: {error}")
                    if not isinstance(error, SlurmRefused) or not (error.limit or jobs):
                        raise
                    if not error.limit:
                        return jobs, done, str(error)
                    if len(intent.piece.elements) == 1:
                        hint = f"the rest stays in the plan: astra resume {plan.pk}"
                        return jobs, done, f"{error}; {hint}"
                    queue[:0] = halves(intent.piece, chosen.pages_per_element)
                    # Withdrawn pages belong to no submission.
                    holders = replace(holders, submissions={*holders.submissions, None})
                    continue
            if coming:
                del queue[0]
                sending = coming, in_background(coming.call)
    except BaseException:
        if sending:  # the next intent could not be committed
            _bind_if_answered(*sending)
        raise
    return jobs, done, None


def _excluded(chosen: Profile) -> tuple[str, ...]:
    """Return the nodes to exclude: only nodes of the partition, and never all of them."""
    bad = excluded_nodes()
    if not bad or "nodelist" in chosen.options:
        return ()
    try:
        room = limits.room(str(chosen.options.get("partition") or "") or None)
    except SlurmError as error:
        log.warning("the nodes of the partition are unknown, so none is excluded: %s", error)
        return ()
    return tuple(to_exclude(bad, room.nodes))


def _as_sent(chosen: Profile, excluded: tuple[str, ...], behind: Job | None) -> Profile:
    """Return the profile of one array: without bad nodes, and after the job it waits for."""
    more = {
        "exclude": excluded,
        "dependency": (f"afterany:{behind.job_id}",) if behind and behind.job_id else (),
    }
    added = {
        key: ",".join(filter(None, [str(chosen.options.get(key) or ""), *words]))
        for key, words in more.items()
        if words
    }
    return chosen.with_options(**added) if added else chosen


@dataclass(frozen=True)
class _Intent:
    """An array that is committed to the database and not yet submitted."""

    piece: Slice
    submission: Submission
    text: str  # of the script
    array: str

    def call(self) -> parse.JobId:
        return client.submit(write_script(self.submission, self.text))


def _intend(
    plan: Plan,
    piece: Slice,
    holders: Holders,
    chosen: Profile,
    sent: Profile,
    hours: Hours,
) -> _Intent:
    each, started = chosen.pages_per_element, piece.with_elements(chosen)
    submission = new_submission(
        plan, started.elements, piece.offset, each, "slurm", chosen, chosen.pull
    )
    if submission.cluster is None:
        submission.cluster_name = limits.this_cluster().name
    # Errors of templates and folders come before an intent is stored.
    text = render(plan, started, sent, submission, hours)
    folder = run_folder(plan.folder)
    submission.script = str(folder / f"{submission.job_name}.sh")
    submission.log_folder = str(folder / "logs")
    commit_intent(submission, piece.pages, holders)
    return _Intent(
        piece, submission, text, script_module.array_spec(started.indices(), chosen.throttle)
    )


def _bind(intent: _Intent, answer: Callable[[], parse.JobId]) -> Job:
    """Wait for the job of an intent, and bind it to its submission."""
    submission, piece = intent.submission, intent.piece
    if_unknown = f"its pages stay reserved for it: astra resume {submission.plan_pk} looks again"
    choose = partial(one_of, submission)
    path = Path(submission.script or "")
    try:
        sent = send(path, submission.job_name, submission.cluster, if_unknown, choose, begun=answer)
    except (SlurmRefused, UsageError) as error:  # the latter: no script could be written
        refused = isinstance(error, SlurmRefused)
        withdraw(submission, "refused" if refused else "absent", str(error))
        raise
    adopt(submission, sent)
    return Job(sent.job_id, intent.array, piece.offset, len(piece.pages), str(path))


def _bind_if_answered(intent: _Intent, answer: Callable[[], parse.JobId]) -> None:
    """Record the answer of sbatch when the command ends early; do not ask again."""
    try:
        adopt(intent.submission, answer())
    except AstraError as error:
        plan = intent.submission.plan_pk
        log.warning("the last array: %s; astra resume %d looks for it by its name", error, plan)


def _dry(plan: Plan, piece: Slice, chosen: Profile, hours: Hours) -> Job:
    """Return the script and the command of a submission, without storing it."""
    each, piece = chosen.pages_per_element, piece.with_elements(chosen)
    submission = Submission(
        plan=plan, token="0" * 12, job_name=f"astra-{plan.pk}-{'0' * 12}", pages_per_element=each
    )
    path = run_folder(plan.folder) / f"{submission.job_name}.sh"
    return Job(
        None, script_module.array_spec(piece.indices(), chosen.throttle), piece.offset,
        len(piece.pages), str(path), render(plan, piece, chosen, submission, hours),
        ("sbatch", "--parsable", str(path)),
    )  # fmt: skip


_NODE = re.compile(r"[\w.-]+")


def to_exclude(nodes_to_avoid: Iterable[str], partition: Iterable[str]) -> list[str]:
    """Return the wanted nodes that are in the partition; none if no node would be left."""
    nodes = set(partition)
    excluded = sorted(n for n in set(nodes_to_avoid) & nodes if _NODE.fullmatch(n))
    return excluded if len(excluded) < len(nodes) else []
