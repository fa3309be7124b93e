"""Plan with sizes that are chosen from earlier attempts."""

import logging
from collections.abc import Callable, Mapping

from peewee import Model

from astra.config.profiles import Profile
from astra.errors import UsageError
from astra.plan import sizes
from astra.plan.plan import Planned, Planning, create_plan, with_lists
from astra.plan.sizes import Estimate
from astra.resume.resume import resume_local

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
    run_probe = resume_local if probe else None
    return sizes.estimate(task, input_model, target_s, arguments, profile, run_probe)


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
