"""Pages of a plan: their status, those that wait for an element, and how one is released."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta

from peewee import SQL, ModelSelect, Query, Value, fn

from astra.config import settings
from astra.database.connection import database, dialect
from astra.database.statements import statement
from astra.models.attempts import N_ENDED, Attempt
from astra.models.keys import RowKey
from astra.models.plans import N_PENDING, Page, Plan
from astra.records import dataclass
from astra.states import AttemptState, Outcome, PageState
from astra.version import CURRENT


@dataclass(frozen=True, slots=True)
class PageStatus:
    """The status of one page, from the database and Slurm."""

    page: int
    state: PageState
    rows: int
    done: int
    failed: int
    no_result: int
    pending: int
    element: int | None = None
    job: str | None = None  # "4711_7", or "local:4711" of --local
    node: str | None = None
    slurm_state: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    reason: str | None = None  # why Slurm lets it wait, or ended it
    attempts: int = 0
    seen: datetime | None = None
    overdue: bool = False
    message: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether its element is a process of ``--local``, and none of Slurm."""
        return self.job is not None and self.job.startswith("local:")


def page_of(plan: Plan, number: int) -> Page:
    return Page.get((Page.plan == plan.pk) & (Page.number == number))


def key_reader(plan_pk: int) -> Callable[[str], RowKey]:
    """Return the function that converts the text of a failure's key to the key of a plan's row."""
    numbers = Page.select(Page.keys.is_null(False)).where(Page.plan == plan_pk).limit(1).scalar()
    return _as_number if numbers else str


def _as_number(text: str) -> RowKey:
    """Return the whole number that a text is; a forged one stays a text."""
    try:
        return int(text)
    except ValueError:
        return text


def is_cancelled(plan_pk: int) -> bool:
    return any(moment is not None for (moment,) in _cancelled(plan=plan_pk))


@statement
def _cancelled(plan: Value) -> Query:
    return Plan.select(Plan.cancelled).where(Plan.pk == plan)


def release_without_heartbeat(name: str, table: str) -> None:
    """Release pages of cancelled plans whose attempts have had no heartbeat for a lease.

    Such an attempt can write nothing if it continues, so its rows are free.
    """
    silent_since = dialect().now() - timedelta(seconds=settings.current().element.lease_s)
    silent = list(
        Attempt.select(Attempt.pk, Attempt.page)
        .join(Page)
        .join(Plan)
        .where(
            (Plan.task == name)
            & (Plan.input_table == table)
            & Plan.cancelled.is_null(False)
            & (Attempt.state == AttemptState.RUNNING.value)
            & (Attempt.seen < silent_since)
        )
    )
    release(silent, "its plan was cancelled, and it has had no heartbeat since")


def release(attempts: Iterable[Attempt], why: str) -> None:
    """Release the pages of attempts that no longer run, which can write nothing from now on."""
    pks = [attempt.pk for attempt in attempts]
    if not pks:
        return
    Page.update(attempt_pk=None).where(Page.attempt_pk.in_(pks)).execute()
    Attempt.update(
        state=AttemptState.SUPERSEDED.value, ended=SQL(dialect().now_sql), message=why
    ).where(Attempt.pk.in_(pks) & (Attempt.state == AttemptState.RUNNING.value)).execute()


#: How many elements may be interrupted at a page before any of its rows has ended. After one more
#: the page is not released again.
_MAX_INTERRUPTED = 1


def give_back(page: Page) -> None:
    """Release a page that an element was interrupted at, if it is a page of a pool.

    A page at which several elements were interrupted before a row ended waits for a resume, which
    gives more time. If it were released again, it would use up one element after the other.
    """
    interrupted = Attempt.select().where(
        (Attempt.page == page.pk)
        & (Attempt.submission_pk == page.submission_pk)
        & (Attempt.state == AttemptState.INTERRUPTED.value)
        & (N_ENDED == 0)
    )
    if interrupted.count() > _MAX_INTERRUPTED:
        return
    Page.update(free=True).where(
        (Page.pk == page.pk) & (Page.attempt_pk == page.attempt_pk) & Page.free.is_null(False)
    ).execute()


def unsubmitted_pages(plan: Plan) -> dict[int, int]:
    """Return the pages without a submission, and how many pending rows each of them has."""
    waiting = (Page.plan == plan.pk) & Page.submission_pk.is_null() & (N_PENDING > 0)
    if dialect().name == "sqlite":
        return dict(database.execute(Page.select(Page.number, N_PENDING).where(waiting)).fetchall())
    # Two arrays: 100,000 rows would cost more to read than the pages that they describe.
    query = Page.select(fn.ARRAY_AGG(Page.number), fn.ARRAY_AGG(N_PENDING)).where(waiting)
    numbers, n_pending = database.execute(query).fetchone()
    return dict(sorted(zip(numbers or (), n_pending or (), strict=True)))


def n_unfinished_pages(plan: Plan) -> int:
    """Count the pages in which rows have not ended."""
    return int(Page.select().where((Page.plan == plan.pk) & (N_PENDING > 0)).count())


def pages_without_keys(plan: Plan) -> "ModelSelect[Page]":
    """Return the query of a plan's pages, in order and without their keys."""
    return (
        Page.select(
            Page.pk, Page.plan, Page.number, Page.n_rows, Page.n_done, Page.n_failed,
            Page.n_no_result, Page.submission_pk, Page.attempt_pk, Page.retries, Page.free,
        )
        .where(Page.plan == plan.pk)
        .order_by(Page.number)
    )  # fmt: skip


def planning_lock(name: str, table: str) -> str:
    """Return the name of the lock for planning rows of a task."""
    return f"planning {name} {table}"


def live_pages(name: str, table: str) -> "ModelSelect[Page]":
    """Return the pages of a task's plans that still have to end rows.

    A plan of another version cannot run. A cancelled one lives on in the pages that an attempt
    still runs.
    """
    running = Attempt.select(Attempt.pk).where(
        (Attempt.pk == Page.attempt_pk) & (Attempt.state == AttemptState.RUNNING.value)
    )
    return (
        Page.select()
        .join(Plan)
        .where(
            (Plan.task == name)
            & (Plan.input_table == table)
            & CURRENT.shares_results(Plan.v_astra)
            & (Plan.cancelled.is_null() | fn.EXISTS(running))
            & (N_PENDING > 0)
        )
    )


def failed_keys(plan: Plan, pages: Iterable[Page]) -> tuple[set[RowKey], dict[int, int]]:
    """Return the keys of the failed rows in some pages of a plan, except those that other plans
    will run; and how many each of these has.
    """
    failed = {key for page in pages for key in _keys_by_outcome(page, Outcome.FAILURE)}
    held: Counter[int] = Counter()
    elsewhere = set()
    for page in live_pages(plan.task, plan.input_table).where(Page.plan != plan.pk):
        in_page = failed.intersection(_keys_by_outcome(page, Outcome.PENDING))
        held[page.plan_pk] += len(in_page)
        elsewhere |= in_page
    return failed - elsewhere, dict(+held)


def _keys_by_outcome(page: Page, outcome: Outcome) -> Iterator[RowKey]:
    return (key for key, was in zip(page.row_keys, page.outcomes, strict=True) if was == outcome)
