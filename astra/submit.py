"""Submission: pages are cut into arrays; for each an intent is committed, and sbatch called."""

import getpass
import os
import socket
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from peewee import fn

from astra import config, log, policy, profile, script, slurm, spool
from astra.bounds import warn
from astra.database import at_hand, begun_aside, connection, database, dialect, url
from astra.errors import AstraError, SlurmError, UsageError
from astra.folders import check_folder, write_whole
from astra.hours import ALWAYS, Hours
from astra.intent import (
    adopt,
    commit_intent,
    new_submission,
    one_of,
    plan_lock,
    recover_intents,
    send,
    withdraw,
)
from astra.models.orchestration import N_PENDING, Exclusion, Page, Plan, Submission
from astra.plan import check_plan_version, get_plan
from astra.profile import Profile
from astra.slurm_text import time_limit_s


@dataclass(frozen=True)
class Job:
    """One Slurm array of a submission."""

    job_id: int | None
    array: str  # as given to sbatch: "1-1000%50"
    offset: int  # page (or element) = array index + offset
    pages: int
    script: str
    text: str | None = None  # the script, of a dry run
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class Left:
    """Pages that the policy does not submit again, and what would."""

    pages: tuple[int, ...]
    state: str  # what ended their elements
    said: str  # "3 of 3 retries used up"
    remedy: str  # "astra resume 1 --only TIMEOUT --time ..."


@dataclass(frozen=True)
class Submitted:
    """What a submission came to."""

    plan: int
    task: str
    pages: int  # that were submitted
    rows: int  # pending rows of those pages
    jobs: tuple[Job, ...] = ()
    profile: str | None = None
    unsubmitted: int = 0  # pages left for later: a limit of Slurm's was reached
    skipped: Mapping[str, int] = field(default_factory=dict)  # pages not touched, by state
    left: tuple[Left, ...] = ()  # pages that are given up
    message: str | None = None
    dry_run: bool = False


def submit(
    plan: int,
    profile_name: str | None = None,
    options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    hours: Hours = ALWAYS,
) -> Submitted:
    """Submit those pages of a plan that were not submitted yet, as Slurm arrays.

    Parameters
    ----------
    plan : its number.
    profile_name : of the configuration or one that ships.
    options : ``sbatch`` options in snake case, ``throttle`` and ``pages_per_element``, which
        override the profile's.
    dry_run : render the scripts, store and submit nothing.
    hours : in which elements may begin and run.

    Raises
    ------
    SlurmError
        If Slurm refuses; the plan can be submitted again.
    """
    frozen = get_plan(plan)
    check_ready(frozen)
    chosen = choose_profile(profile_name, options)
    with plan_lock(frozen), at_hand():
        recover_intents(frozen)
        spool.recover(frozen)
        with connection():
            pages = waiting_pages(frozen)
        if pages:
            warn(chosen)
        return submit_pages(frozen, pages, {None}, chosen, dry_run, hours)


def check_ready(plan: Plan) -> None:
    """Refuse a plan that cannot be run by Slurm now."""
    check_plan_version(plan)
    if plan.cancelled is not None:
        raise UsageError(f"plan {plan.pk} was cancelled; its rows can be planned again: astra plan")
    if dialect().name != "postgresql":
        number = plan.pk or "TASK"
        raise UsageError(
            "elements on other machines cannot share a SQLite file: set ASTRA_DATABASE_URL to a "
            f"PostgreSQL server, or run here: astra submit {number} --local"
        )


def choose_profile(name: str | None, options: Mapping[str, Any] | None) -> Profile:
    """The profile of a name, with options that override its own."""
    found = profile.get(name, config.current())
    given = {key: value for key, value in (options or {}).items() if value is not None}
    return without_early_signal(found.with_options(**given) if given else found)


def without_early_signal(chosen: Profile) -> Profile:
    """The profile without its warning signal where that would come as the element begins.

    Slurm may send it up to a minute early (sbatch(1), --signal). The SIGTERM at the time limit,
    KillWait before SIGKILL, still has what was yielded stored.
    """
    signal, limit = chosen.options.get("signal"), chosen.options.get("time")
    _, _, lead = str(signal or "").partition("@")
    if lead.isdigit() and limit and (limit_s := time_limit_s(limit)) is not None:
        if limit_s < 2 * int(lead) + 60:
            return replace(chosen.with_options(signal=False), given=chosen.given)
    return chosen


def waiting_pages(plan: Plan) -> dict[int, int]:
    """Pages that were given to no submission, and how many rows each has left, if any."""
    # As two arrays: of 100,000 rows, each would cost more than the page that it tells of.
    query = Page.select(fn.ARRAY_AGG(Page.number), fn.ARRAY_AGG(N_PENDING)).where(
        (Page.plan == plan.pk) & Page.submission_pk.is_null() & (N_PENDING > 0)
    )
    numbers, n_pending = database.execute(query).fetchone()
    return dict(sorted(zip(numbers or (), n_pending or (), strict=True)))


def light_pages(plan: Plan) -> Any:
    """The pages of a plan in order, without their keys."""
    return (
        Page.select(
            Page.pk, Page.plan, Page.number, Page.n_rows, Page.n_done, Page.n_failed,
            Page.n_no_result, Page.submission_pk, Page.attempt_pk, Page.retries,
        )
        .where(Page.plan == plan.pk)
        .order_by(Page.number)
    )  # fmt: skip


# ---------------------------------------------------------------------------------- submitting


@dataclass(frozen=True)
class Slice:
    """The part of a submission that one array serves."""

    pages: list[int]  # their numbers
    elements: list[int]
    offset: int

    def indices(self) -> list[int]:
        return [element - self.offset for element in self.elements]


def submit_pages(
    plan: Plan,
    pages: Mapping[int, int],
    holders: Set[int | None],
    chosen: Profile,
    dry_run: bool = False,
    hours: Hours = ALWAYS,
) -> Submitted:
    """Submit pages as arrays, one for each slice of MaxArraySize; the plan is locked.

    The throttle is that of all of them together: each has a share of it, and those for which none
    is left wait for one of those before them.

    Parameters
    ----------
    pages : their numbers, and how many rows each has left.
    holders : submissions that they were given to when they were looked at; None for those that
        were given to none.
    """
    away = _away(chosen) if pages else ()
    each = chosen.pages_per_element
    queue = list(slices(pages, each, slurm.max_array_size() - 1)) if pages else []
    lanes = shares(chosen.throttle, [len(piece.elements) for piece in queue])
    if dry_run:
        jobs = [
            _dry(plan, piece, _as_sent(_in_lane(chosen, lanes, n), away, None), hours)
            for n, piece in enumerate(queue)
        ]
        done, message = list(pages), None
    else:
        if queue:
            check_folder(run_folder(plan) / "logs")
        jobs, done, message = _submit_slices(plan, queue, holders, chosen, lanes, away, hours)
    return Submitted(
        plan.pk, plan.task, len(done), sum(map(pages.__getitem__, done)), tuple(jobs),
        chosen.name, len(pages) - len(done), message=message, dry_run=dry_run,
    )  # fmt: skip


def _submit_slices(
    plan: Plan,
    queue: list[Slice],
    holders: Set[int | None],
    chosen: Profile,
    lanes: list[int],
    away: tuple[str, ...],
    hours: Hours,
) -> tuple[list[Job], list[int], str | None]:
    """Call sbatch for one slice after the other; while it runs, the next intent is made.

    Returns the jobs, their pages, and what Slurm said where it took no more.
    """
    jobs: list[Job] = []
    done: list[int] = []
    sending: tuple[_Intent, Callable[[], slurm.JobId]] | None = None
    try:
        while queue or sending:
            coming = None
            n = len(jobs) + bool(sending)
            behind = n - len(lanes) if lanes else -1  # the job whose share of the throttle it takes
            if queue and behind < len(jobs):
                mine = _in_lane(chosen, lanes, n)
                sent = _as_sent(mine, away, jobs[behind] if behind >= 0 else None)
                coming = _intend(plan, queue[0], holders, mine, sent, hours)
            if sending:
                (intent, answer), sending = sending, None
                try:
                    jobs.append(_bind(intent, answer))
                    done += intent.piece.pages
                except AstraError as error:
                    if coming:
                        withdraw(coming.submission, "absent", f"not sent after: {error}")
                    if not isinstance(error, slurm.SlurmRefused) or not (error.limit or jobs):
                        raise
                    if not error.limit:
                        return jobs, done, str(error)
                    if len(intent.piece.elements) == 1:
                        rest = f"the rest stays with the plan: astra resume {plan.pk}"
                        return jobs, done, f"{error}; {rest}"
                    queue[:0] = halves(intent.piece, chosen.pages_per_element)
                    holders = {*holders, None}  # what was taken back belongs to nobody
                    continue
            if coming:
                del queue[0]
                sending = coming, begun_aside(coming.call)
    except BaseException:
        if sending:  # the next intent could not be made
            _bind_if_answered(*sending)
        raise
    return jobs, done, None


def _in_lane(chosen: Profile, lanes: list[int], n: int) -> Profile:
    """The profile of the n-th array, with its share of the throttle."""
    return replace(chosen, throttle=lanes[n % len(lanes)]) if lanes else chosen


def shares(total: int | None, weights: Sequence[int]) -> list[int]:
    """A throttle divided by weight, at least 1 each; fewer shares than weights if it is small.

    >>> shares(10, [600, 300, 100]), shares(2, [5, 5, 5]), shares(None, [7])
    ([6, 3, 1], [1, 1], [])
    """
    if total is None or not weights:
        return []
    taken = list(weights[:total])
    exact = [total * weight / sum(taken) for weight in taken]
    found = [max(int(part), 1) for part in exact]
    while (over := sum(found) - total) != 0:
        wrong = [n - part for n, part in zip(found, exact, strict=True)]
        if over > 0:
            found[max((i for i, n in enumerate(found) if n > 1), key=lambda i: wrong[i])] -= 1
        else:
            found[min(range(len(found)), key=lambda i: wrong[i])] += 1
    return found


def slices(pages: Iterable[int], each: int, most: int) -> Iterator[Slice]:
    """Cut pages by the array that their elements belong to: indices 1 to `most`, and an offset."""
    numbers, of_array = sorted(pages), each * most
    begin = 0
    while begin < len(numbers):
        group = (numbers[begin] - 1) // of_array
        end = bisect_right(numbers, (group + 1) * of_array, begin)
        members = numbers[begin:end]
        yield Slice(members, _elements(members, each), group * most)
        begin = end


def _elements(pages: list[int], each: int) -> list[int]:
    return pages if each == 1 else list(dict.fromkeys([(page - 1) // each + 1 for page in pages]))


def halves(piece: Slice, each: int) -> list[Slice]:
    second = piece.elements[len(piece.elements) // 2]
    cut = bisect_left(piece.pages, (second - 1) * each + 1)
    return [
        Slice(pages, _elements(pages, each), piece.offset)
        for pages in (piece.pages[:cut], piece.pages[cut:])
    ]


def excluded_nodes() -> dict[str, Exclusion]:
    """Nodes that are left out at present."""
    with connection():
        return {e.node: e for e in Exclusion.select().where(Exclusion.until > dialect().now())}


def _away(chosen: Profile) -> tuple[str, ...]:
    """Nodes to keep away from: none that Slurm does not know, and never all of a partition."""
    bad = excluded_nodes()
    if not bad or "nodelist" in chosen.options:
        return ()
    try:
        room = slurm.room(str(chosen.options.get("partition") or "") or None)
    except SlurmError as error:
        log.warning("which nodes there are is not known, so that none is left out: %s", error)
        return ()
    return tuple(policy.to_exclude(bad, room.nodes))


def _as_sent(chosen: Profile, away: tuple[str, ...], behind: Job | None) -> Profile:
    """The profile of one array: away from bad nodes, and behind the one whose share it takes."""
    more = {
        "exclude": away,
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
    """An array that is committed to the database, and was not given to sbatch yet."""

    piece: Slice
    submission: Submission
    text: str  # of the script
    array: str

    def call(self) -> slurm.JobId:
        return slurm.submit(write_script(self.submission, self.text))


def _intend(
    plan: Plan,
    piece: Slice,
    holders: Set[int | None],
    chosen: Profile,
    sent: Profile,
    hours: Hours,
) -> _Intent:
    each = chosen.pages_per_element
    submission = new_submission(plan, piece.elements, piece.offset, each, "slurm", chosen)
    # What a template or a folder may refuse is refused before an intent is left behind.
    text = _render(plan, piece, sent, submission, hours)
    folder = run_folder(plan)
    submission.script = str(folder / f"{submission.job_name}.sh")
    submission.log_folder = str(folder / "logs")
    commit_intent(submission, piece.pages, holders)
    return _Intent(piece, submission, text, script.array_spec(piece.indices(), chosen.throttle))


def _bind(intent: _Intent, answer: Callable[[], slurm.JobId]) -> Job:
    """The job that sbatch made of an intent, bound to its submission."""
    submission, piece = intent.submission, intent.piece
    kept = f"the pages are kept for it: astra resume {submission.plan_pk} looks again"
    choose = partial(one_of, submission)
    path = Path(submission.script)
    try:
        found = send(path, submission.job_name, submission.cluster, kept, choose, begun=answer)
    except (slurm.SlurmRefused, UsageError) as error:  # the latter: no script could be written
        refused = isinstance(error, slurm.SlurmRefused)
        withdraw(submission, "refused" if refused else "absent", str(error))
        raise
    adopt(submission, found)
    return Job(found.job_id, intent.array, piece.offset, len(piece.pages), str(path))


def _bind_if_answered(intent: _Intent, answer: Callable[[], slurm.JobId]) -> None:
    """As the command ends early: what sbatch did is taken down, and not asked for again."""
    try:
        adopt(intent.submission, answer())
    except AstraError as error:
        plan = intent.submission.plan_pk
        log.warning("the last array: %s; astra resume %d looks for it by its name", error, plan)


# ------------------------------------------------------------------------------------- scripts


def run_folder(plan: Plan) -> Path:
    return Path(config.current().run.dir) / f"plan-{plan.pk}"


def write_script(submission: Submission, text: str) -> Path:
    path = Path(submission.script)
    write_whole(path, text, 0o700)
    return path


def _render(plan: Plan, piece: Slice, chosen: Profile, submission: Submission, hours: Hours) -> str:
    return script.render(
        chosen.template,
        script.ElementScript(
            plan=plan.pk,
            task=plan.task,
            token=submission.token,
            job_name=submission.job_name,
            pages=script.array_spec(piece.pages),
            array=script.array_spec(piece.indices(), chosen.throttle),
            offset=piece.offset,
            pages_per_element=submission.pages_per_element,
            row_timeout=chosen.row_timeout,
            start_until=hours.start_until,
            tell_at=hours.tell_at,
            directives=tuple(profile.directives(chosen)),
            setup=chosen.setup,
            log_path=script.log_pattern(run_folder(plan) / "logs"),
            chdir=plan.cwd if Path(plan.cwd).is_dir() else str(Path.cwd()),
            python=sys.executable,
            environment=environment(),
            made_by=f"{getpass.getuser()} on {socket.gethostname()}",
            made_at=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        ),
    )  # fmt: skip


def environment() -> dict[str, str]:
    """What a job needs to find the same configuration; never a secret."""
    found: dict[str, str] = {}
    settings = config.current()
    if settings.path:
        found["ASTRA_CONFIG"] = str(settings.path)
    # A URL with a password travels in the environment that sbatch passes on, not in the script.
    if settings.source("database.url") != str(settings.path) and not config.has_password(url()):
        found["ASTRA_DATABASE_URL"] = url()
    found["ASTRA_RUN_DIR"] = str(Path(settings.run.dir).absolute())
    for name in ("PYTHONPATH", "PGSERVICEFILE", "PGSERVICE", "PGPASSFILE"):
        if os.environ.get(name):
            found[name] = os.environ[name]
    return found


def _dry(plan: Plan, piece: Slice, chosen: Profile, hours: Hours) -> Job:
    """The script and the command as they would be, of a submission that is not stored."""
    each = chosen.pages_per_element
    submission = Submission(
        plan=plan, token="0" * 12, job_name=f"astra-{plan.pk}-{'0' * 12}", pages_per_element=each
    )
    path = run_folder(plan) / f"{submission.job_name}.sh"
    return Job(
        None, script.array_spec(piece.indices(), chosen.throttle), piece.offset,
        len(piece.pages), str(path), _render(plan, piece, chosen, submission, hours),
        ("sbatch", "--parsable", str(path)),
    )  # fmt: skip
