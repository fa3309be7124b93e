"""Checks of what astra remembers of a plan's orchestration: submissions, pages and attempts.

Each is checked by itself, and against those that it names.
"""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import peewee
from peewee import Model

from astra.database.connection import dialect, tuples
from astra.models.keys import table_name
from astra.models.pipeline import OutputModel
from astra.models.plans import Attempt, Failure, NoResult, Page, Plan, Submission, Suspect
from astra.models.schema import lacking_guard
from astra.states import AttemptState

#: A clock of another node may be so much ahead.
CLOCKS_DIFFER = timedelta(hours=1)

_SUBMISSION_STATES = {"intent", "submitted", "refused", "absent", "ended"}
_COUNTS = ("n_done", "n_failed", "n_no_result", "n_found", "n_checkpoints")

#: A page, or None, and what is wrong with it.
Found = Iterator[tuple[int | None, str]]


class Records:
    """The submissions of a plan, and the checks of what refers to them."""

    def __init__(self, plan: Plan, model: type[Model], output: type[OutputModel]) -> None:
        self.plan, self.model, self.output = plan, model, output
        self.latest = dialect().now() + CLOCKS_DIFFER
        query = Submission.select().where(Submission.plan == plan.pk)
        self.submissions = {submission.pk: submission for submission in query}
        self.tokens: set[str] = set()

    def guards(self) -> Iterator[str]:
        """Tables without an index or a trigger that an invariant rests on."""
        for model in (self.model, self.output, Submission, Page, Attempt, Failure, NoResult):
            if lacks := lacking_guard(model):
                yield f"the table {model._meta.table_name} {lacks}"

    def of_plan(self) -> Found:
        """What is wrong with the plan itself, its submissions and its suspects."""
        plan = self.plan
        if plan.input_table != table_name(self.model):
            yield None, f"the plan is of the table {plan.input_table}, its model of another"
        if not plan.token or plan.limit < 1:
            yield None, f"the plan has the token {plan.token!r} and {plan.limit} rows per page"
        if not isinstance(_json(plan.arguments), dict):
            yield None, f"the plan's arguments are {plan.arguments[:100]!r}"
        if plan.cancelled is not None and plan.cancelled < plan.created:
            yield None, "the plan was cancelled before it was made"
        if late := self._late(plan, "created", "cancelled", "paused"):
            yield None, f"the plan was {late} in the future"
        for submission in self.submissions.values():
            for found in self._submission(submission):
                yield None, f"submission {submission.pk} {found}"
        yield from _suspects(plan)

    def _submission(self, submission: Submission) -> Iterator[str]:
        elements: list[int] = submission.elements or []
        job_id = submission.job_id
        if submission.state not in _SUBMISSION_STATES or submission.kind not in ("slurm", "local"):
            yield f"is of kind {submission.kind!r}, and {submission.state!r}"
        if not submission.token or submission.token not in submission.job_name:
            yield f"has the token {submission.token!r}, and its job the name {submission.job_name}"
        if len(set(elements)) != len(elements) or min(elements, default=1) < 1:
            yield f"has the elements {elements[:20]}"
        if submission.kind == "slurm" and submission.state == "submitted" and job_id is None:
            yield "was submitted, and has no job"
        if submission.pages_per_element < 1:
            yield f"has {submission.pages_per_element} pages for each element"
        if self._late(submission, "created"):
            yield "was made in the future"

    def of_page(self, page: Page, attempts: list[Any]) -> Iterator[str]:
        """What is wrong with a page, or with an attempt at it."""
        given = self.submissions.get(page.submission_pk or 0)
        if page.submission_pk is not None and given is None:
            yield f"it was given to submission {page.submission_pk}, which the plan does not have"
        if given is not None and given.state in ("refused", "absent"):
            yield f"it was given to submission {given.pk}, which came to nothing"
        if given is not None and page.free is not None and not given.pulls:
            yield f"it is in a pool, and submission {given.pk} has none"
        if not 1 <= page.n_rows <= self.plan.limit:
            yield f"it has {page.n_rows} rows, the plan {self.plan.limit} per page"
        if page.retries is not None and not isinstance(_json(page.retries), list):
            yield f"its retries are {page.retries[:100]!r}"
        if self._late(page, "modified"):
            yield "it was modified in the future"
        numbers = [attempt.number for attempt in attempts]
        if numbers and (numbers[0] > 1 or numbers != list(range(numbers[0], numbers[-1] + 1))):
            yield f"its attempts have the numbers {numbers}"
        for attempt in attempts:
            for found in self._attempt(attempt, page.n_rows):
                yield f"attempt {attempt.pk} {found}"

    def _attempt(self, attempt: Any, n_rows: int) -> Iterator[str]:
        submission = self.submissions.get(attempt.submission_pk)
        if submission is None and self.submissions:
            yield f"is of submission {attempt.submission_pk}, which the plan does not have"
        elif (
            submission is not None
            and submission.kind == "slurm"
            and None not in (attempt.job_id, submission.job_id)
            and attempt.job_id != submission.job_id
        ):
            yield f"is of job {attempt.job_id}, its submission of {submission.job_id}"
        if attempt.state not in set(AttemptState):
            yield f"has the state {attempt.state!r}"
        if attempt.state == AttemptState.RUNNING and attempt.ended is not None:
            yield f"is running, and ended at {attempt.ended}"
        if attempt.seen < attempt.began or (attempt.ended or attempt.began) < attempt.began:
            yield "was seen, or ended, before it began"
        if attempt.began < self.plan.created:
            yield "began before the plan was made"
        if late := self._late(attempt, "began", "seen", "ended"):
            yield f"{late} in the future"
        counts = {name: getattr(attempt, name) for name in _COUNTS}
        if min(counts.values()) < 0 or max(counts["n_done"], attempt.n_handed) > n_rows:
            yield f"has the counts {counts}, of {n_rows} rows"
        if not counts["n_checkpoints"] and any(counts[name] for name in _COUNTS[:3]):
            yield "ended rows without a checkpoint"
        if not attempt.token or attempt.token in self.tokens:
            yield f"has the token {attempt.token!r}, which is another's or none"
        self.tokens.add(attempt.token)

    def _late(self, of: Any, *names: str) -> str | None:
        """The first of these moments that lies in the future."""
        moments = {name: getattr(of, name) for name in names}
        return next((n for n, at in moments.items() if at is not None and at > self.latest), None)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _suspects(plan: Plan) -> Found:
    query = (
        Suspect.select(Page.number, Suspect.place)
        .join(Page)
        .where(
            (Page.plan == plan.pk)
            & ((Suspect.place < 0) | (Suspect.place >= Page.n_rows) | (Suspect.deaths < 0))
        )
    )
    for number, place in tuples(query):
        yield number, f"a suspect stands at the place {place}, or died less than 0 times"


#: Records, and the column by which they belong to another.
_PARTS = ((Submission, "plan", Plan), (Page, "plan", Plan), (Attempt, "page", Page),
          (Suspect, "page", Page))  # fmt: skip


def orphans() -> Iterator[str]:
    """Records of whatever plan that belong to nothing: foreign keys were dropped or disabled."""
    for model, name, owner in _PARTS:
        field = getattr(model, name)
        is_there = owner.select(peewee.SQL("1")).where(owner.pk == field)
        if n := model.select().where(~peewee.fn.EXISTS(is_there)).count():
            yield f"{n} of the table {model._meta.table_name} belong to no {name}"
