"""The totals of a night: the sums of what is counted and stored for each of its plans."""

from collections.abc import Iterable, Sequence

from peewee import JOIN, Expression, fn

from astra.database.connection import connection, tuples
from astra.errors import count
from astra.models.attempts import Attempt
from astra.models.nights import Night, NightPlan
from astra.models.plans import N_PENDING, Page, Plan, Submission
from astra.models.stored_json import options_of, stored
from astra.plan.plan import Planned
from astra.policy import retry_policy
from astra.policy.next_steps import ends_of
from astra.states import Outcome

#: The totals that each plan of a night has, and the night as their sums.
TOTALS = ("n_rows", "n_done", "n_failed", "n_no_result", "n_retries", "task_s", "cpu_s")


def entries_of(*nights: Night) -> list[NightPlan]:
    """Return the stored plans of nights, and their tasks without a plan, in their order."""
    of_nights = NightPlan.night.in_([night.pk for night in nights] or [0])
    with connection():
        return list(NightPlan.select().where(of_nights).order_by(NightPlan.pk))


def plan_pks(night: Night) -> list[int]:
    return [entry.plan_pk for entry in entries_of(night) if entry.plan_pk is not None]


def n_pending_rows(plan: int) -> int:
    """Count the rows of a plan that have not ended."""
    n_pending = fn.SUM(N_PENDING)
    with connection():
        return int(Page.select(n_pending).where(Page.plan == plan).scalar() or 0)


def rows_elsewhere(
    night: Night, planned: Iterable[Planned], takes: bool
) -> tuple[list[str], list[str]]:
    """Describe other plans that have rows which were left out of a night's plans.

    Return those that no night continues, which a person may have forgotten, and those of nights. A
    night that takes leftovers could not continue a plan that only its earlier nights have.
    """
    task_of = {plan: p.task for p in planned for plan in p.live_plans}
    of_nights = NightPlan.select(NightPlan.plan_pk, Night.name, Night.ended).join(Night)
    with connection():
        found = list(tuples(of_nights.where(NightPlan.plan_pk.in_([*task_of]))))
    names = {plan: name for plan, name, _ in found}
    continued = {
        plan for plan, name, ended in found if ended is None or name != night.name or not takes
    }
    forgotten: list[str] = []
    known: list[str] = []
    for plan, task in task_of.items():
        whose = f"of the night {names[plan]}" if plan in names else "which belongs to no night"
        n_rows = count(n_pending_rows(plan), "pending row")
        text = f"plan {plan}, {whose}, has {n_rows} of {task}: astra status {plan}"
        (known if plan in continued else forgotten).append(text)
    return forgotten, known


def retries_of(plans: list[int]) -> int:
    """Count the elements that ended before their pages, and were followed by another element."""
    of_plans = Page.plan.in_(plans or [0]) & Page.retries.is_null(False)
    with connection():
        pages = list(Page.select(Page.plan, Page.number, Page.retries).where(of_plans))
    return sum(
        end.state not in retry_policy.USES_NO_RETRY for page in pages for end in ends_of(page)
    )


def with_current_totals(entries: list[NightPlan]) -> list[NightPlan]:
    """Give plans of a night their present totals, and store nothing; return the plans."""
    for entry in entries:
        for name, value in _current_totals(entry).items() if entry.plan_pk is not None else ():
            if getattr(entry, name) != value:
                setattr(entry, name, value)
    return entries


def refresh_totals(night: Night) -> list[NightPlan]:
    """Store the present totals of a night's plans, and return the plans."""
    entries = entries_of(night)
    store_totals(entries)
    return entries


def store_totals(entries: list[NightPlan]) -> None:
    """Store the present totals of plans of nights."""
    for entry in with_current_totals(entries):
        if entry.is_dirty():
            with connection():
                entry.save(only=entry.dirty_fields)


def _current_totals(entry: NightPlan) -> dict[str, object]:
    """Return the totals of a plan; none if it was removed, so that its last totals remain."""
    of_plan = Page.plan == entry.plan_pk
    columns = (Page.n_rows, Page.n_done, Page.n_failed, Page.n_no_result)
    with connection():
        n_rows, *ended = next(tuples(Page.select(*map(fn.SUM, columns)).where(of_plan)))
        if not n_rows:
            return {}
        attempts = of_plan & (Attempt.began >= entry.began) if entry.leftover else of_plan
        task_s, cpu_s = _seconds(attempts)
        plan = Plan.get_by_id(entry.plan_pk)
        if plan.cancelled and n_rows > sum(ended):
            n_rows = sum(ended) + _n_given_up(plan, entry)
    counts = dict(zip(TOTALS, (int(n) for n in (n_rows, *ended)), strict=False))
    return {
        **counts, "n_retries": retries_of([entry.plan_pk or 0]) - entry.retries_before,
        "task_s": task_s, "cpu_s": cpu_s, "has_ended": n_rows == sum(ended),
        "message": "was cancelled" if plan.cancelled else None,
    }  # fmt: skip


def _n_given_up(plan: Plan, entry: NightPlan) -> int:
    """Count the rows that a cancelled plan left, and no later plan of its night has."""
    later = NightPlan.select(NightPlan.plan_pk).where(
        (NightPlan.night == entry.night) & (NightPlan.plan_pk > plan.pk)
    )
    is_alike = (Plan.task == plan.task) & (Plan.input_table == plan.input_table)
    pages = Page.select(Page.keys, Page.key_texts, Page.outcomes)
    left = {
        key
        for page in pages.where((Page.plan == plan.pk) & (N_PENDING > 0))
        for key, outcome in zip(page.row_keys, page.outcomes, strict=True)
        if outcome == Outcome.PENDING
    }
    for page in pages.join(Plan).where(Plan.pk.in_(later) & is_alike):
        left.difference_update(page.row_keys)
    return len(left)


def _seconds(is_chosen: Expression) -> tuple[float, float]:
    """Sum the time that attempts spent in the task, and their CPU time."""
    allocated = fn.SUM(fn.COALESCE(Attempt.t_start_s, 0) + fn.COALESCE(Attempt.t_rows_s, 0))
    query = (
        Attempt.select(Submission.profile, fn.SUM(Attempt.t_task_s), allocated)
        .join(Page)
        .join_from(Attempt, Submission, JOIN.LEFT_OUTER, on=Submission.pk == Attempt.submission_pk)
        .where(is_chosen)
        .group_by(Submission.profile)
    )
    task_s = cpu_s = 0.0
    for profile, in_task_s, allocated_s in tuples(query):
        task_s += in_task_s or 0.0
        cpu_s += (allocated_s or 0.0) * _cpus(profile)
    return task_s, cpu_s


def _cpus(profile: str | None) -> int:
    """Return the number of processors of an element, from its submitted options."""
    options = options_of(stored(profile, dict, "the profile of a submission"))
    each, tasks = options.get("cpus_per_task", 1), options.get("ntasks", 1)
    return int(each) * int(tasks) if f"{each}{tasks}".isdecimal() else 1


def totals_of(entries: Sequence[NightPlan]) -> NightPlan:
    """Return the totals of some plans of a night together."""
    return NightPlan(**{name: sum(getattr(entry, name) for entry in entries) for name in TOTALS})


def n_ended(of: NightPlan) -> int:
    return of.n_done + of.n_failed + of.n_no_result


def n_left(of: NightPlan) -> int:
    """Return the number of rows that have not ended."""
    return of.n_rows - n_ended(of)
