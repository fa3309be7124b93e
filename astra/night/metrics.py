"""Metrics in Prometheus' text format: nights, rows by state, ages and retries.

They are gauges of the present state: of the last night of each name, and of plans that have not
ended.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from peewee import fn

from astra.database.connection import connection, dialect
from astra.models.attempts import Attempt
from astra.models.plans import Page
from astra.models.table_checks import current_tables
from astra.night.history import last_nights
from astra.night.totals import retries_of
from astra.states import AttemptState, PlanState
from astra.status.plans import all_plans
from astra.status.status import statuses

#: The states that a night can be in; each has a series that is 0 or 1.
NIGHT_STATES = ("whole", "failed rows", "not whole", "running", "without a finalizer")

#: The labels of a sample, and its value.
Sample = tuple[Mapping[str, str], float]


def metrics() -> str:
    """Return all metrics as text.

    Returns
    -------
    str
        Gauges in Prometheus' text format.

    Raises
    ------
    DatabaseError
        If the database gives no answer.

    Examples
    --------
    >>> from astra.api import metrics
    >>> print(metrics().splitlines()[0])
    # HELP astra_collected_timestamp_seconds The time when these metrics were collected.
    """
    with current_tables():
        now = dialect().now()
    collected = _metric(
        "astra_collected_timestamp_seconds", "The time when these metrics were collected.",
        [({}, now.timestamp())],
    )  # fmt: skip
    return "".join([collected, *_of_nights(now), *_of_plans(now)])


def _of_nights(now: datetime) -> Iterator[str]:
    labelled = [({"night": night.name}, night) for night in last_nights()]
    yield _metric(
        "astra_night_state", "1 for the state of the last night of each name, 0 for the others.",
        [({**name, "state": s}, n.state == s) for name, n in labelled for s in NIGHT_STATES],
    )  # fmt: skip
    yield _metric(
        "astra_night_age_seconds", "Time since the last night of each name began.",
        [(name, (now - night.began).total_seconds()) for name, night in labelled],
    )  # fmt: skip
    yield _metric(
        "astra_night_rows", "Rows of the last night of each name, by outcome.",
        [
            ({**name, "outcome": outcome}, getattr(night, outcome))
            for name, night in labelled
            for outcome in ("results", "failures", "no_result", "pending")
        ],
    )  # fmt: skip
    yield _metric(
        "astra_night_retries", "Retried elements of the last night of each name.",
        [(name, night.retries) for name, night in labelled],
    )  # fmt: skip


def _of_plans(now: datetime) -> Iterator[str]:
    living = [plan for plan in all_plans() if plan.is_live]
    of_task: dict[str, list[int]] = defaultdict(list)
    oldest: dict[str, datetime] = {}
    rows: Counter[tuple[str, str]] = Counter()
    plans: Counter[str] = Counter()
    for plan in living:
        of_task[plan.task].append(plan.plan)
        oldest[plan.task] = min(oldest.get(plan.task, now), plan.created)
    for status in statuses([plan.plan for plan in living], include_done=False):
        plans[status.state.value] += 1
        for state, n in status.rows.items():
            rows[status.task, state] += n
    yield _metric(
        "astra_plans", "Plans with rows that have not ended, by state.",
        [({"state": state.value}, plans[state.value]) for state in PlanState],
    )  # fmt: skip
    yield _metric(
        "astra_rows", "Rows of plans that have not ended, by task and state.",
        [({"task": task, "state": state}, n) for (task, state), n in sorted(rows.items())],
    )  # fmt: skip
    yield _metric(
        "astra_oldest_plan_age_seconds", "Age of a task's oldest plan that has not ended.",
        [({"task": task}, (now - oldest[task]).total_seconds()) for task in sorted(oldest)],
    )  # fmt: skip
    yield _metric(
        "astra_retries", "Retried elements of plans that have not ended, by task.",
        [({"task": task}, retries_of(of_task[task])) for task in sorted(of_task)],
    )  # fmt: skip
    yield _metric(
        "astra_heartbeat_age_seconds", "Time since the last heartbeat of an attempt, the longest.",
        [
            ({"task": task}, (now - seen).total_seconds())
            for task in sorted(of_task)
            if (seen := _oldest_heartbeat(of_task[task]))
        ],
    )  # fmt: skip


def _oldest_heartbeat(plans: Sequence[int]) -> datetime | None:
    query = (
        Attempt.select(fn.MIN(Attempt.seen))
        .join(Page, on=(Page.attempt_pk == Attempt.pk))
        .where((Page.plan << list(plans)) & (Attempt.state == AttemptState.RUNNING))
    )
    with connection():
        return query.scalar()


def _metric(name: str, text: str, samples: Iterable[Sample]) -> str:
    """Return one gauge with its samples, or nothing where it has none."""
    lines = [f"{name}{_labels(labels)} {float(value):.15g}\n" for labels, value in samples]
    return f"# HELP {name} {text}\n# TYPE {name} gauge\n{''.join(lines)}" if lines else ""


def _labels(labels: Mapping[str, str]) -> str:
    escapes = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    inner = ",".join(f'{name}="{value.translate(escapes)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""
