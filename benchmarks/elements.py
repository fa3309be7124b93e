"""Elements as the benchmarks run them: submitted, forked from one process, looked at meanwhile."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2

from astra.database.connection import connection, drop_connection
from astra.element.element import run_element
from astra.models.plans import Page, Submission
from astra.plan.lookup import get_plan
from astra.plan.plan import Planned
from astra.submit.intent import make_intent, new_submission


def submitted(made: Planned, n_elements: int, pages_per_element: int = 1) -> Submission:
    """All pages of a plan, given to so many elements."""
    plan = get_plan(int(made.plan or 0))
    with connection():
        pages = list(Page.select().where(Page.plan == plan.pk))
    submission = new_submission(plan, range(1, n_elements + 1), 0, pages_per_element, "local")
    make_intent(submission, pages)
    return submission


def forked(submission: Submission, n_elements: int) -> list[int]:
    """Run the elements at once, each as a process of its own; their exit statuses."""
    drop_connection()  # which no two processes may share
    pids = [_in_a_fork(submission, element) for element in range(1, n_elements + 1)]
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _in_a_fork(submission: Submission, element: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        runs = run_element(submission.plan_pk, element, submission.token)
        status = max(run.exit_status for run in runs)
    finally:
        os._exit(status)


@contextmanager
def sampled(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """`look()` every so often, in a thread of its own."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(every_s):
            look()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def activity(
    server: Any, sql: str, take: Callable[[list[Any]], None], every_s: float
) -> Iterator[None]:
    """What a query of the server's activity gives, every so often."""
    with closing(psycopg2.connect(server.url("postgres"))) as link:
        link.autocommit = True
        with link.cursor() as cursor:

            def look() -> None:
                cursor.execute(sql)
                take(cursor.fetchall())

            with sampled(look, every_s):
                yield
