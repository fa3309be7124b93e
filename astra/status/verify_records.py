"""Check the records of a plan's execution: submissions, pages and attempts.

Each record is checked by itself, and against the records to which it refers.
"""

import re
from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property

import peewee
from peewee import Model

from astra.database.connection import dialect, tuples
from astra.database.constraints import impossible_values, lost_constraints, undoing_triggers
from astra.models.archive import Archive
from astra.models.attempts import Attempt, Suspect
from astra.models.base import BaseModel
from astra.models.failures import Failure, NoResult
from astra.models.keys import TRUE, table_name
from astra.models.pipeline import OutputModel
from astra.models.plans import MadeBy, Page, Plan, Submission
from astra.models.stored_json import parsed
from astra.models.table_checks import lacking_guard
from astra.policy.next_steps import parsed_ends
from astra.states import AttemptState
from astra.tasks.provenance import digest_of, fingerprint

#: How far the clock of another node may be ahead.
CLOCKS_DIFFER = timedelta(hours=1)

#: The name in a failure of a row whose result names another row; such a failure has no traceback.
FOREIGN_ROW = "ForeignRow"

_SUBMISSION_STATES = {"intent", "submitted", "refused", "absent", "ended"}
_COUNTS = ("n_done", "n_failed", "n_no_result", "n_found", "n_checkpoints")


class RecordChecks:
    """The checks of a plan's submissions, pages and attempts."""

    def __init__(self, plan: Plan, model: type[Model], output: type[OutputModel]) -> None:
        self.plan, self.model, self.output = plan, model, output
        self.latest = dialect().now() + CLOCKS_DIFFER
        self.tokens: set[str] = set()
        origins = MadeBy.select(MadeBy.pk).where(MadeBy.plan_pk == plan.pk)
        self.origins = [pk for (pk,) in tuples(origins)]

    @cached_property
    def submissions(self) -> dict[int, Submission]:
        query = Submission.select().where(Submission.plan == self.plan.pk)
        return {submission.pk: submission for submission in query}

    def guards(self) -> Iterator[str]:
        """Yield which tables lack a key, a constraint or a trigger that an invariant requires."""
        own_models = (Plan, MadeBy, Submission, Page, Attempt, Suspect, Failure, NoResult)
        names = [model._meta.table_name for model in own_models]
        for model in (self.model, self.output, *own_models):
            lacks = lacking_guard(model)
            lost = lost_constraints(model) if issubclass(model, BaseModel) else ()
            undone = undoing_triggers(model, names) if model in own_models else ()
            for problem in (*([lacks] if lacks else []), *lost, *undone):
                yield f"the table {model._meta.table_name} {problem}"
        if (n := Archive.select().count()) != 1:
            yield f"the table {Archive._meta.table_name} has {n} rows instead of one"

    def values(self) -> Iterator[str]:
        """Yield which tables are missing, and which columns hold values of a wrong type.

        Nothing else can be checked then.
        """
        if missing := [m for m in (self.model, self.output) if not dialect().columns(m)]:
            yield from (f"the table {model._meta.table_name} is missing" for model in missing)
            return
        plan, pages = self.plan.pk, Page.select(Page.pk).where(Page.plan == self.plan.pk)
        of_plan = (
            (Plan, Plan.pk == plan), (MadeBy, MadeBy.plan_pk == plan),
            (Submission, Submission.plan == plan), (Page, Page.plan == plan),
            (Attempt, Attempt.page.in_(pages)), (Suspect, Suspect.page.in_(pages)),
            (Failure, Failure.plan_pk == plan), (NoResult, NoResult.plan_pk == plan),
            (self.output, TRUE),
        )  # fmt: skip
        for model, clause in of_plan:
            yield from impossible_values(model, clause)

    def n_results(self) -> int:
        """Count the results that refer to one of the plan's attempts."""
        query = self.output.select().join(Attempt, on=(Attempt.pk == self.output.attempt_pk))
        return int(query.join(Page).where(Page.plan == self.plan.pk).count())

    def of_plan(self) -> Iterator[str]:
        """Yield the problems of the plan itself and of its submissions."""
        plan = self.plan
        if plan.input_table != table_name(self.model):
            table = table_name(self.model)
            yield f"the plan's table is {plan.input_table}, that of its model is {table}"
        if not plan.token or plan.limit < 1:
            yield f"the plan's token is {plan.token!r}, its rows per page are {plan.limit}"
        if Plan.select().where(Plan.token == plan.token).count() > 1:
            yield f"another plan has the same token {plan.token!r}"
        if -(-plan.n_rows // max(plan.limit, 1)) != plan.n_pages:
            rows = f"{plan.n_rows} rows with {plan.limit} per page"
            yield f"the plan has {plan.n_pages} pages for {rows}"
        if plan.throttle is not None and plan.throttle < 1:
            yield f"the plan's throttle is {plan.throttle}"
        yield from self._origin_problems()
        if plan.cancelled is not None and plan.cancelled < plan.created:
            yield "the plan was cancelled before it was created"
        if late := self._in_future(plan, "created", "cancelled", "paused"):
            yield f"the plan's time {late!r} is in the future"
        for submission in self.submissions.values():
            for problem in self._submission_problems(submission):
                yield f"submission {submission.pk} {problem}"
        renamed = Failure.plan_pk == plan.pk, Failure.exception == FOREIGN_ROW
        if n := Failure.select().where(*renamed, Failure.traceback.is_null(False)).count():
            yield f"{n} failures with a traceback have the exception {FOREIGN_ROW}"

    def _origin_problems(self) -> Iterator[str]:
        """Yield the problems of the provenance record of the plan's results."""
        plan, origin = self.plan, MadeBy.get_or_none(MadeBy.pk == self.plan.made_by)
        if origin is None or origin.plan_pk != plan.pk:
            yield f"the plan's made_by is {plan.made_by}, which is not a record of this plan"
            return
        if origin.fingerprint.partition("-")[0] != fingerprint(origin):
            yield f"the row {origin.pk} of the table made_by was changed after it was written"
        arguments = parsed(plan.arguments, dict)
        made_with = parsed(origin.arguments, dict) or {}
        if arguments is None or any(made_with.get(k, v) != v for k, v in arguments.items()):
            yield f"the plan's arguments {plan.arguments[:100]!r} differ from those of its results"
        if plan.arguments_digest != digest_of(plan.arguments):
            yield f"the plan's arguments were changed to {plan.arguments[:100]!r}"
        for name in ("task", "v_astra", "commit"):
            if (of_plan := getattr(plan, name)) != (of_results := getattr(origin, name)):
                yield f"the plan's {name} is {of_plan!r}, that of its results is {of_results!r}"

    def _submission_problems(self, submission: Submission) -> Iterator[str]:
        elements: list[int] = submission.elements or []
        job_id = submission.job_id
        if submission.state not in _SUBMISSION_STATES or submission.kind not in ("slurm", "local"):
            yield f"is of kind {submission.kind!r} and in state {submission.state!r}"
        if not submission.token or submission.token not in submission.job_name:
            job_name = submission.job_name
            yield f"has the token {submission.token!r}, which its job name {job_name!r} lacks"
        if len(set(elements)) != len(elements) or min(elements, default=1) < 1:
            yield f"has the elements {elements[:20]}, which must be positive and distinct"
        if submission.kind == "slurm" and submission.state == "submitted" and job_id is None:
            yield "was submitted, but has no job"
        if submission.state == "refused" and job_id is not None:
            yield f"was refused, but has the job {job_id}"
        if submission.pages_per_element < 1 or submission.offset < 0:
            each = submission.pages_per_element
            yield f"has {each} pages for each element and the offset {submission.offset}"
        if parsed(submission.profile, dict) is None:
            yield f"has an unreadable profile: {submission.profile[:100]!r}"
        if self._in_future(submission, "created"):
            yield "was created in the future"

    def of_page(self, page: Page, attempts: list[Attempt]) -> Iterator[str]:
        """Yield the problems of a page and of its attempts."""
        submission = self.submissions.get(page.submission_pk or 0)
        if page.submission_pk is not None and submission is None:
            yield f"it belongs to submission {page.submission_pk}, which is not of this plan"
        if submission is not None and submission.state in ("refused", "absent"):
            yield f"it belongs to submission {submission.pk}, which Slurm never accepted"
        if submission is not None and page.free is not None and not submission.pulls:
            yield f"it is in a pool, but elements of submission {submission.pk} take no pages"
        if not 1 <= page.n_rows <= self.plan.limit:
            yield f"it has {page.n_rows} rows, but the plan has {self.plan.limit} rows per page"
        if submission is not None and not submission.pulls and submission.kind == "slurm":
            element = (page.number - 1) // max(submission.pages_per_element, 1) + 1
            if element not in submission.elements:
                yield f"submission {submission.pk} does not have its element {element}"
        if page.retries is not None and parsed_ends(page.retries) is None:
            yield f"its retries are unreadable: {page.retries[:100]!r}"
        if self._in_future(page, "modified"):
            yield "it was modified in the future"
        numbers = [attempt.number for attempt in attempts]
        if numbers and (numbers[0] > 1 or numbers != list(range(numbers[0], numbers[-1] + 1))):
            yield f"its attempts are not numbered consecutively: {numbers}"
        for attempt in attempts:
            for problem in self._attempt_problems(attempt, page.n_rows):
                yield f"attempt {attempt.pk} {problem}"

    def _attempt_problems(self, attempt: Attempt, n_rows: int) -> Iterator[str]:
        submission = self.submissions.get(attempt.submission_pk)
        if submission is not None:
            yield from _contradictions(attempt, submission)
        elif self.submissions:
            yield f"belongs to submission {attempt.submission_pk}, which is not of this plan"
        yield from self._time_problems(attempt)
        counts = {name: getattr(attempt, name) for name in _COUNTS}
        n_ended = sum(counts[name] for name in _COUNTS[:4])
        if min(counts.values()) < 0 or not -1 <= attempt.n_handed <= n_rows or n_ended > n_rows:
            yield f"has the impossible counts {counts} for {n_rows} rows"
        if not counts["n_checkpoints"] and any(counts[name] for name in _COUNTS[:3]):
            yield "ended rows without a checkpoint"
        if min(attempt.restarts, attempt.t_task_s, attempt.t_read_s, attempt.t_write_s) < 0:
            yield "has a negative duration, or a negative number of restarts"
        if not re.fullmatch(r"(-?\d+:\d+ ?)*", attempt.row_times or ""):
            yield f"has unreadable row times: {str(attempt.row_times)[:100]!r}"
        if not attempt.token or attempt.token in self.tokens:
            yield f"has the token {attempt.token!r}, which is empty or that of another attempt"
        self.tokens.add(attempt.token)

    def _time_problems(self, attempt: Attempt) -> Iterator[str]:
        """Yield the problems of the state and the times of an attempt."""
        state, ended = attempt.state, attempt.ended
        if state not in set(AttemptState):
            yield f"has the unknown state {state!r}"
        if ended is not None and state == AttemptState.RUNNING:
            yield f"is running, but ended at {ended}"
        if ended is None and state == AttemptState.DONE and attempt.n_checkpoints:
            yield "is done, but has no time of its end"
        if attempt.seen < attempt.began or (ended or attempt.began) < attempt.began:
            yield "has a heartbeat or an end before it began"
        if attempt.began < self.plan.created:
            yield "began before the plan was created"
        if late := self._in_future(attempt, "began", "seen", "ended"):
            yield f"has a time in the future: {late!r}"

    def _in_future(self, of: object, *names: str) -> str | None:
        """Return the name of the first of these times that lies in the future."""
        moments = {name: getattr(of, name) for name in names}
        return next((n for n, at in moments.items() if at is not None and at > self.latest), None)


def _contradictions(attempt: Attempt, submission: Submission) -> Iterator[str]:
    """Yield how an attempt and its submission contradict each other."""
    jobs, index = (attempt.job_id, submission.job_id), attempt.array_index
    if submission.state == "refused":
        yield f"belongs to submission {submission.pk}, which was refused"
    if submission.kind == "slurm" and None not in jobs and jobs[0] != jobs[1]:
        yield f"has the job {jobs[0]}, but its submission has the job {jobs[1]}"
    if attempt.element not in submission.elements:
        yield f"has the element {attempt.element}, which its submission does not have"
    if index is not None and index != attempt.element - submission.offset:
        yield f"has the element {attempt.element}, but the array index {index}"


def was_released(plan: Plan, page: Page, attempts: list[Attempt]) -> bool:
    """Return whether a page was taken from its last attempt, which can write nothing more, since
    the plan was cancelled."""
    is_of_none = plan.cancelled is not None and page.attempt_pk is None
    return is_of_none and attempts[-1].state == AttemptState.SUPERSEDED


def attempts_of(plan: Plan) -> dict[int, list[Attempt]]:
    """Return the attempts of each page, in their order."""
    query = (
        Attempt.select(Page.number.alias("page_number"), Attempt)
        .join(Page)
        .where(Page.plan == plan.pk)
        .order_by(Attempt.number)
    )  # fmt: skip
    attempts: dict[int, list[Attempt]] = {}
    for attempt in query.namedtuples():
        attempts.setdefault(attempt.page_number, []).append(attempt)
    return attempts


def suspects(plan: Plan) -> Iterator[tuple[int, str]]:
    """Yield the problems of a plan's suspects, each with the number of its page."""
    query = (
        Suspect.select(Page.number, Suspect.place)
        .join(Page)
        .where(
            (Page.plan == plan.pk)
            & (
                (Suspect.place < 0)
                | (Suspect.place >= Page.n_rows)
                | (Suspect.deaths < 0)
                | (Suspect.group < 0)
            )
        )
    )
    for number, place in tuples(query):
        yield number, f"a suspect has the impossible place {place}, or another impossible number"


#: Tables of records, and the column that names the record to which they belong.
_PARTS = ((Submission, "plan", Plan), (Page, "plan", Plan), (Attempt, "page", Page),
          (Suspect, "page", Page))  # fmt: skip


def orphans() -> Iterator[str]:
    """Yield tables with records whose owner is missing: a foreign key was dropped or disabled."""
    for model, name, owner in _PARTS:
        field = getattr(model, name)
        is_there = owner.select(peewee.SQL("1")).where(owner.pk == field)
        if n := model.select().where(~peewee.fn.EXISTS(is_there)).count():
            yield f"{n} rows of the table {model._meta.table_name} belong to no {name}"
