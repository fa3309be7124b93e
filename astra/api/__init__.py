"""The interface for programs, which the command line uses too: one function for each command.

::

    from astra.api import create_plan, submit, wait

    plans = create_plan("slam.slam", limit=2000)
    submissions = submit(plans, profile="debug", mem="4G")
    for plan_status in wait(submissions):
        print(plan_status.plan, plan_status.state, plan_status.rows)

A task that reads several tables has a plan for each of them, so these functions take and return
lists; they also take one item, or the number of a plan. Errors are those of :mod:`astra.errors`;
each message says what to do next.

Names that are not in ``__all__`` are for the command line: they may change in any version.
"""

TYPE_CHECKING = False  # type checkers assume True; an import here would delay every command
if TYPE_CHECKING:
    from astra.api.running import run_here as run_here
    from astra.api.sizing import estimate
    from astra.api.sizing import plan_sized as plan_sized
    from astra.api.submitting import resume_plan as resume_plan
    from astra.api.submitting import submit
    from astra.api.submitting import submit_task as submit_task
    from astra.api.waiting import wait
    from astra.plan.lookup import last_plan as last_plan
    from astra.plan.plan import Planned, create_plan
    from astra.plan.plan import plan_at_most as plan_at_most
    from astra.plan.sizes import Estimate
    from astra.resume.cancel import Cancelled, cancel
    from astra.resume.resume import resume, resume_local
    from astra.states import PlanState
    from astra.status.failures import FailedRow, failures
    from astra.status.status import PlanStatus, status, statuses
    from astra.status.verdict import Verdict
    from astra.status.verify import verify
    from astra.submit.submit import Submitted

__all__ = [
    "Cancelled",
    "Estimate",
    "FailedRow",
    "PlanState",
    "PlanStatus",
    "Planned",
    "Submitted",
    "Verdict",
    "cancel",
    "create_plan",
    "estimate",
    "failures",
    "resume",
    "resume_local",
    "status",
    "statuses",
    "submit",
    "verify",
    "wait",
]

#: The module that defines each name, which is imported when the name is first used.
_HOME_OF = {
    "Cancelled": "astra.resume.cancel",
    "Estimate": "astra.plan.sizes",
    "FailedRow": "astra.status.failures",
    "PlanState": "astra.states",
    "PlanStatus": "astra.status.status",
    "Planned": "astra.plan.plan",
    "Submitted": "astra.submit.submit",
    "Verdict": "astra.status.verdict",
    "cancel": "astra.resume.cancel",
    "create_plan": "astra.plan.plan",
    "estimate": "astra.api.sizing",
    "failures": "astra.status.failures",
    "last_plan": "astra.plan.lookup",
    "plan_at_most": "astra.plan.plan",
    "plan_sized": "astra.api.sizing",
    "resume": "astra.resume.resume",
    "resume_local": "astra.resume.resume",
    "resume_plan": "astra.api.submitting",
    "run_here": "astra.api.running",
    "status": "astra.status.status",
    "statuses": "astra.status.status",
    "submit": "astra.api.submitting",
    "submit_task": "astra.api.submitting",
    "verify": "astra.status.verify",
    "wait": "astra.api.waiting",
}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'astra.api' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
