"""Submission: cut pages into arrays; for each, commit an intent and call sbatch."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from itertools import cycle
from pathlib import Path

from astra.config.profiles import Profile, choose_profile, without_early_signal
from astra.config.run_folder import check_folder, run_folder, write_whole
from astra.database.connection import connection, dialect, keep_connected
from astra.database.threads import in_background
from astra.errors import AstraError, SlurmError, SlurmRefused, SlurmUnknown, UsageError
from astra.models.attempts import excluded_nodes
from astra.models.plans import Page, Plan, Submission
from astra.plan.lookup import check_plan_version, get_plan, paused_message
from astra.plan.pages import n_unfinished_pages, unsubmitted_pages
from astra.policy.next_steps import NextStep
from astra.records import dataclass
from astra.slurm import client, limits, parse
from astra.slurm import script as script_module
from astra.slurm.command import available
from astra.states import PageState, PlanState
from astra.submit.arrays import Slice, reduced, shares, slices
from astra.submit.intent import (
    bind_job,
    commit_intent,
    hold_plan,
    keep_one_job,
    new_submission,
    submit_once,
    withdraw,
)
from astra.submit.night_hours import ALWAYS, Hours
from astra.submit.render import check_export, render

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
    left: tuple[NextStep, ...] = ()  #: pages that the policy does not submit again
    message: str | None = None  #: why fewer pages were submitted than requested
    dry_run: bool = False  #: whether nothing was submitted

    @property
    def exit_status(self) -> int:
        """The exit status of a command that submitted this: 0 unless it left all pages alone."""
        if self.pages:
            return 0
        if self.skipped.get(PageState.UNKNOWN.value):
            return SlurmUnknown.exit_status
        is_left = self.left or self.unsubmitted or self.skipped.get("held")
        return PlanState.ATTENTION.exit_status if is_left else 0


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
    with keep_connected(), limits.site_queried_once():
        frozen = get_plan(plan)
        check_ready(frozen, dry_run)
        profile = choose_profile(profile_name, options)
        # Slurm is queried while the plan is locked, its pages are read and its script is prepared.
        queried = in_background(lambda: limits.obstacles_to(profile))
        with hold_plan(frozen):
            with connection():
                pages = unsubmitted_pages(frozen)
                n_unfinished = 0 if pages else n_unfinished_pages(frozen)
            if pages:
                script_module.prepare(profile.template)
                queried()
            submitted = submit_pages(frozen, [(profile, pages)], {}, dry_run, hours)
    if n_unfinished:
        if frozen.paused is not None:
            return replace(submitted, message=paused_message(plan, frozen.pause_reason))
        return replace(submitted, message=_submitted_before(plan, n_unfinished))
    return submitted


def prepare(profile: Profile) -> None:
    """Query what Slurm allows elements of a profile; compile its template at the same time.

    Raises
    ------
    SlurmError
        If Slurm does not answer: nothing can be submitted then.
    """

    def query() -> None:
        limits.configuration(None)
        limits.obstacles_to(profile)

    queried = in_background(query)
    script_module.prepare(profile.template)
    queried()


def _submitted_before(plan: int, n_pages: int) -> str:
    which = (
        "1 page was submitted before and has"
        if n_pages == 1
        else f"{n_pages:,} pages were submitted before and have"
    )
    return f"{which} not ended; to submit again what is no longer running: astra resume {plan}"


def check_ready(plan: Plan, dry_run: bool = False, verb: str = "submit") -> None:
    """Refuse a plan that Slurm cannot run now; a dry run works with any database."""
    check_plan_version(plan)
    if not (dry_run and plan.is_of_dry_run):
        refuse_cancelled(plan)
    if not dry_run:
        check_shared_database(f"astra {verb} {plan.pk}")


def check_shared_database(command: str | None = None) -> None:
    """Refuse a database that elements on other machines cannot use; `command` can run them here."""
    if dialect().name != "postgresql":
        alternative = f", or run here: {command} --local" if command else ""
        raise UsageError(
            "elements on other machines cannot share a SQLite file; set ASTRA_DATABASE_URL to a "
            f"PostgreSQL database{alternative}"
        )


def refuse_cancelled(plan: Plan) -> None:
    if plan.cancelled is not None:
        raise UsageError(f"plan {plan.pk} was cancelled; its rows can be planned again: astra plan")


def submit_pages(
    plan: Plan,
    groups: Sequence[tuple[Profile, Mapping[int, int]]],
    seen: Mapping[int, Page],
    dry_run: bool = False,
    hours: Hours = ALWAYS,
) -> Submitted:
    """Submit pages as arrays, one for each slice of MaxArraySize; the plan is locked.

    The arrays share the lowest throttle; one without a share waits for the end of an earlier one.

    Parameters
    ----------
    groups : profiles, each with the numbers of its pages, and how many pending rows each has.
    seen : those that belonged to a submission, by their numbers, as they were read.
    """
    for profile, _ in groups:
        check_export(profile)
    pages = {number: n_rows for _, group in groups for number, n_rows in group.items()}
    if plan.paused is not None and pages and not dry_run:
        n_left = len(pages)
        paused = paused_message(plan.pk, plan.pause_reason)
        return Submitted(plan.pk, plan.task, 0, 0, unsubmitted=n_left, message=paused)
    queue = _queue(plan, groups, hours, dry_run) if pages else []
    throttle = min((profile.throttle for profile, _ in groups if profile.throttle), default=None)
    shared = shares(throttle, [len(piece.pages) for _, piece in queue])
    if dry_run:
        message, submitted = None, list(pages)
        jobs = [
            builder.build(piece, share, token="0" * 12).job()
            for (builder, piece), share in zip(queue, cycle(shared or [None]), strict=False)
        ]
    else:
        if queue:
            check_folder(run_folder(plan.folder) / "logs")
        jobs, submitted, message = _submit_slices(queue, shared, seen)
    return Submitted(
        plan.pk, plan.task, len(submitted), sum(map(pages.__getitem__, submitted)), tuple(jobs),
        groups[-1][0].name if groups else None, len(pages) - len(submitted), message=message,
        dry_run=dry_run,
    )  # fmt: skip


#: The default of Slurm for MaxArraySize.
_USUAL_ARRAY_SIZE = 1001


def _array_size(profile: Profile, dry_run: bool) -> int:
    """Return Slurm's MaxArraySize, or in a dry run without Slurm its default."""
    if dry_run and not available():
        log.warning(
            "Slurm is not installed here: MaxArraySize is assumed to be %d", _USUAL_ARRAY_SIZE
        )
        return _USUAL_ARRAY_SIZE
    return limits.max_array_size(profile.clusters)


def _submit_slices(
    queue: list[tuple["_ArrayBuilder", Slice]], shared: list[int], seen: Mapping[int, Page]
) -> tuple[list[Job], list[int], str | None]:
    """Call sbatch for each slice; while it runs, commit the next intent.

    The arrays take turns with the shares of the throttle. Return the jobs, their pages, and the
    message of Slurm if it accepted no more.
    """
    jobs: list[Job] = []
    pages: list[int] = []
    sending: tuple[_Array, Callable[[], parse.JobId]] | None = None
    try:
        while queue or sending:
            coming = None
            n = len(jobs) + bool(sending)
            # The job whose share it waits for.
            behind = n - len(shared) if shared else -1
            if queue and behind < len(jobs):
                # Errors of templates and folders come before an intent is stored.
                builder, piece = queue[0]
                share = shared[n % len(shared)] if shared else None
                coming = builder.build(piece, share, jobs[behind] if behind >= 0 else None)
                if coming.submission.cluster is None:
                    coming.submission.cluster_name = limits.this_cluster()
                commit_intent(coming.submission, piece.pages, seen)
            if sending:
                (array, answer), sending = sending, None
                try:
                    jobs.append(_bind(array, answer))
                    pages += array.piece.pages
                except AstraError as error:
                    if coming:
                        withdraw(coming.submission, "absent", f"not sent after: {error}")
                    if not isinstance(error, SlurmRefused) or not (error.limit or jobs):
                        raise
                    if not error.limit:
                        return jobs, pages, str(error)
                    if len(array.piece.elements) == 1:
                        again = f"astra resume {array.builder.plan.pk}"
                        return jobs, pages, f"{error}; the rest stays in the plan: {again}"
                    pieces = reduced(array.piece, array.builder.profile)
                    queue[:0] = [(array.builder, piece) for piece in pieces]
                    continue
            if coming:
                del queue[0]
                sending = coming, in_background(coming.call)
    except BaseException:
        if sending:  # the next intent could not be committed
            _bind_if_answered(*sending)
        raise
    return jobs, pages, None


@limits.site_queried_once()
def _queue(
    plan: Plan,
    groups: Sequence[tuple[Profile, Mapping[int, int]]],
    hours: Hours,
    dry_run: bool,
) -> list[tuple["_ArrayBuilder", Slice]]:
    """Return the slices of pages, each with what builds its array; warn of what delays them."""
    queue = []
    for profile, pages in groups:
        default_time = limits.default_time(profile)
        excluded = nodes_to_exclude(profile)
        profile = without_early_signal(profile, default_time)
        builder = _ArrayBuilder(plan, profile, excluded, hours, default_time)
        max_indices = _array_size(profile, dry_run) - 1
        queue += [(builder, piece) for piece in slices(pages, profile, max_indices)]
    for obstacle in dict.fromkeys(text for p, _ in groups for text in limits.obstacles_to(p)):
        log.warning("%s", obstacle)
    return queue


def nodes_to_exclude(profile: Profile) -> tuple[str, ...]:
    """Return further nodes to exclude: only nodes of the partition, and never all of them."""
    bad = excluded_nodes()
    if not bad or "nodelist" in profile.options:
        return ()
    try:
        cluster = profile.clusters or limits.this_cluster()
        nodes = set(limits.partition_limits(profile.partition, profile.clusters).nodes)
        nodes -= limits.hosts(str(profile.options.get("exclude") or ""))
    except SlurmError as error:
        log.warning("the nodes of the partition are unknown, so none is excluded: %s", error)
        return ()
    excluded = sorted({e.node for e in bad if e.cluster == cluster} & nodes)
    return tuple(excluded) if len(excluded) < len(nodes) else ()


@dataclass(frozen=True)
class _Array:
    """An array that has not been submitted yet."""

    builder: "_ArrayBuilder"
    piece: Slice
    submission: Submission
    text: str  # of the script
    indices: str

    def call(self) -> parse.JobId:
        """Write the script to the path that the submission has, and submit it."""
        path = Path(self.submission.script or "")
        write_whole(path, self.text, 0o700)  # only its owner may run it
        return client.submit(path)

    def job(self, job_id: int | None = None) -> Job:
        piece, path = self.piece, self.submission.script or ""
        if job_id is not None:
            return Job(job_id, self.indices, piece.offset, len(piece.pages), path)
        command = ("sbatch", "--parsable", path)
        return Job(None, self.indices, piece.offset, len(piece.pages), path, self.text, command)


@dataclass(frozen=True)
class _ArrayBuilder:
    """Build the arrays of pages with the same profile from what they have in common."""

    plan: Plan
    profile: Profile
    excluded: tuple[str, ...]  # nodes
    hours: Hours
    default_time: str | None  # time limit of elements whose profile requests none

    def build(
        self,
        piece: Slice,
        throttle: int | None = None,
        behind: Job | None = None,
        token: str | None = None,
    ) -> _Array:
        """Return an array with its script; nothing of it is stored yet.

        Its job avoids bad nodes, and waits for the job whose share of the throttle it takes over.
        """
        plan, profile = self.plan, replace(self.profile, max_elements=piece.max_elements)
        if throttle:
            profile = replace(profile, throttle=throttle)
        submission = new_submission(
            plan, piece.elements, piece.offset, profile.pages_per_element, "slurm", profile,
            profile.pull, token, self.default_time,
        )  # fmt: skip
        folder = run_folder(plan.folder)
        submission.script = str(folder / f"{submission.job_name}.sh")
        submission.log_folder = str(folder / "logs")
        before = (f"afterany:{behind.job_id}",) if behind and behind.job_id else ()
        if before and "?" in str(profile.options.get("dependency")):
            # Slurm waits for all jobs or for any one; the job before has waited for any one.
            profile = profile.with_options(dependency=False)
        sent = profile.with_more(exclude=self.excluded, dependency=before)
        text = render(plan, piece, sent, submission, self.hours)
        indices = script_module.array_spec(piece.indices(), profile.throttle)
        return _Array(self, piece, submission, text, indices)


def _bind(array: _Array, answer: Callable[[], parse.JobId]) -> Job:
    """Wait for the job of an array, and bind it to its submission."""
    submission = array.submission
    if_unknown = (
        f"its pages stay reserved for it: astra resume {submission.plan_pk} looks for it again"
    )
    choose = partial(keep_one_job, submission)
    path = Path(submission.script or "")
    try:
        sent = submit_once(path, submission.job, if_unknown, choose, begun=answer)
    except (SlurmRefused, UsageError) as error:  # the latter: no script could be written
        refused = isinstance(error, SlurmRefused)
        withdraw(submission, "refused" if refused else "absent", str(error))
        raise
    bind_job(submission, sent)
    return array.job(sent.job_id)


def _bind_if_answered(array: _Array, answer: Callable[[], parse.JobId]) -> None:
    """Record the answer of sbatch when the command ends early; do not ask again."""
    try:
        bind_job(array.submission, answer())
    except AstraError as error:
        plan = array.submission.plan_pk
        log.warning("the last array: %s; astra resume %d looks for it by its name", error, plan)
