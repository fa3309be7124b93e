"""Run a plan in this process."""

from collections.abc import Callable

from astra.element.element import Element
from astra.element.page_outcome import PageOutcome
from astra.element.signals import stop_on_signals
from astra.plan.lookup import check_plan_version, get_plan
from astra.results.stopping import Stop
from astra.submit.intent import make_intent, new_submission, plan_lock
from astra.submit.local import end_submission, interrupted, pages_to_run


def run_here(plan_pk: int, notify: Callable[[PageOutcome], None] = lambda run: None) -> None:
    """Run every page of a plan in this process, one after the other."""
    plan = get_plan(plan_pk)
    check_plan_version(plan)
    with plan_lock(plan):
        pages = pages_to_run(plan)
        submission = new_submission(plan, [page.number for page in pages], 0, 1, "local")
        make_intent(submission, pages)
    stop = Stop()
    try:
        with stop_on_signals(stop), Element(plan, submission, stop) as worker:
            for page in pages:
                if (run := worker.run_page(page.number, page.number)) is None:
                    break
                notify(run)
                if stop.is_wanted:
                    break
    finally:
        end_submission(submission)
    if stop.is_wanted:
        raise interrupted(plan)
