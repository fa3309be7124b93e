"""Plan with sizes that are chosen from earlier attempts."""

import logging
import math
from collections.abc import Callable, Mapping
from numbers import Real

from peewee import Model

from astra.config.profiles import Profile
from astra.database.connection import connection
from astra.errors import TaskError, UsageError
from astra.models.table_checks import check_tables, check_version
from astra.plan import sizes
from astra.plan.pending import pending_rows
from astra.plan.plan import Planned, Planning, create_plan, with_lists
from astra.plan.sizes import Estimate, Experience
from astra.tasks.arguments import as_stored, parse_arguments
from astra.tasks.declared import declared_by
from astra.tasks.signature import choose_model, find_task, output_model, task_name

log = logging.getLogger(__name__)


def estimate(
    task: Callable[..., object] | str,
    input_model: type[Model] | str | None = None,
    target_s: float = 3600.0,
    arguments: Mapping[str, object] | None = None,
    profile: Profile | None = None,
    probe: bool = False,
) -> list[Estimate]:
    """Choose sizes such that an element takes about `target_s`, from earlier attempts.

    Parameters
    ----------
    task : callable or str
        A task, or its name.
    input_model : class or str, optional
        One of the task's input models, or its name; default all.
    target_s : float
        How long an element should take [s].
    arguments : mapping, optional
        Arguments of the task, by name.
    profile : Profile, optional
        The profile to use: its partition bounds the limits. Without a profile there are no bounds.
    probe : bool
        If the task has no attempts yet, run a few rows here first, and store their results.

    Returns
    -------
    list of Estimate
        One for each input model.

    Raises
    ------
    TaskError
        If the task or an argument cannot be used.

    Examples
    --------
    >>> from astra.api import estimate
    >>> (sizes,) = estimate("slam.slam", "BossVisitSpectrum", target_s=600)
    >>> sizes.source
    'history'
    """
    if not isinstance(target_s, Real) or not 0 < target_s < math.inf:
        raise TaskError(f"target_s={target_s!r}: give a number of seconds above 0")
    function = find_task(task)
    check_version()
    models, output = choose_model(function, input_model), output_model(function)
    with connection():
        check_tables(*models, output)
    site, estimates = sizes.bounds(profile), []
    for model in models:
        measured = _measured(function, model, arguments or {}, probe)
        with connection():
            pending = pending_rows(model, output, declared_by(function).group_by).count()
        of_model = task_name(function), model.__name__, *measured
        estimates.append(sizes.sizes(*of_model, target_s, pending, profile, site))
    return estimates


def _measured(
    task: Callable[..., object], model: type[Model], arguments: Mapping[str, object], probe: bool
) -> tuple[Experience | None, str]:
    """Return measurements of earlier attempts, or of a few rows that run here, and the source."""
    stored, source = as_stored(parse_arguments(task, arguments)), "history"
    measured = sizes.experience(task, model, stored)
    if measured is None and probe:
        (planned,) = create_plan(task, model, None, sizes.N_PROBE, sizes.N_PROBE, arguments)
        if planned.plan is not None:
            from astra.resume.resume import resume_local  # here, as submit only plans

            resume_local(planned.plan)
        measured, source = sizes.experience(task, model, stored), "probe"
    return measured, source if measured else "defaults"


def plan_sized(
    task: Callable[..., object] | str,
    planning: Planning,
    element_time_s: float | None,
    profile: Profile | None = None,
) -> list[tuple[Planned, Estimate | None]]:
    """Plan a task, with pages of a size such that an element takes about `element_time_s`, if any.

    Raises
    ------
    UsageError
        If `planning` names a ``limit``, too.
    """
    if element_time_s is None:
        return [(planned, None) for planned in create_plan(task, **planning)]
    if planning.get("limit") is not None:
        raise UsageError(
            "--page-size (--limit) cannot be combined with the time of an element, which "
            "determines the rows per page: leave one of them out"
        )
    planning = with_lists(planning)
    model, arguments = planning.get("input_model"), planning.get("arguments")
    plans: list[tuple[Planned, Estimate | None]] = []
    for estimated in estimate(task, model, element_time_s, arguments, profile):
        for note in estimated.notes:
            log.warning("%s: %s", estimated.task, note)
        sized: Planning = {
            **planning, "input_model": estimated.input_model, "limit": estimated.limit
        }  # fmt: skip
        plans += [(planned, estimated) for planned in create_plan(task, **sized)]
    return plans
