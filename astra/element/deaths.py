"""Record, in an element's parent process, how its child crashed.

The parent needs no database until then, so this module is imported when the first child dies.
"""

import logging
from typing import Any

from peewee import SQL, Expression

from astra.database.connection import dialect, retrying, writing
from astra.element.pause_checks import pause_if_all_break
from astra.element.progress_board import ProgressBoard
from astra.element.suspects import Death, record_death
from astra.errors import AstraError
from astra.models.attempts import Attempt
from astra.models.plans import Page
from astra.results.rows import clean
from astra.states import AttemptState

log = logging.getLogger(__name__)


#: States of an attempt whose process did not record how it died. One that was stopped at the row
#: timeout has recorded itself as interrupted.
_OPEN = (AttemptState.RUNNING.value, AttemptState.INTERRUPTED.value)


def _is_of(board: ProgressBoard) -> Expression:
    """Return a clause: the attempt that the child ran."""
    return (Attempt.pk == board.attempt_pk) & (Attempt.token == board.token.decode())


def note_death(
    board: ProgressBoard, death: Death, peak_mb: float, alive: bool, waiting: Any = None
) -> bool:
    """Record the rows in progress as suspects; return whether there were any.

    `waiting` has the same meaning as for :func:`retrying`.
    """
    if not board.attempt_pk:
        log.error("the element's process %s before it claimed a page", death.cause)
        return False

    places = [] if death.on_request else board.places()

    def work() -> None:
        with writing():
            page = Page.get_or_none(Page.pk == board.page_pk)  # its plan may have been removed
            subject = "a row" if places else "no row was in progress: the task"
            if death.on_request:
                subject = "the task"
            values = {
                "message": clean(f"{subject} {death.cause}", 2000),
                "n_handed": -1,
                "max_rss_mb": peak_mb,
                "t_start_s": board.start_s or None,
            }
            if alive:
                values["state"] = AttemptState.DIED.value
            # Only once, even if the answer to the commit is lost and this is repeated.
            is_open = _is_of(board) & Attempt.state.in_(_OPEN) & (Attempt.n_handed >= 0)
            update = Attempt.update(values).where(is_open)
            if page and page.attempt_pk == board.attempt_pk and update.execute():
                record_death(page.pk, places, death)

    try:
        retrying(work, waiting=waiting)
    except AstraError as error:
        log.error("the suspect rows could not be recorded: %s", error)
        return False
    log.error("the task %s; suspect rows: %d", death.cause, len(places))
    return bool(places)


def give_up(board: ProgressBoard, death: Death, waiting: Any = None) -> None:
    """Record a page as broken: its process died repeatedly with no row in progress.

    The task itself is to blame then, not a row. `waiting` is that of :func:`retrying`.
    """
    message = f"its process crashed with no row in progress: the task {death.cause}"
    log.error("%s; the page stays pending", message)

    def work() -> None:
        with writing():
            broken = Attempt.update(
                state=AttemptState.BROKEN.value, message=message, ended=SQL(dialect().now_sql)
            )
            # It may have ended before its process crashed.
            is_open = Attempt.state.in_((*_OPEN, AttemptState.DIED.value))
            if broken.where(_is_of(board) & is_open).execute():
                pause_if_all_break(Page.get_by_id(board.page_pk).plan_pk)

    try:
        if board.attempt_pk:
            retrying(work, waiting=waiting)
    except AstraError as error:
        log.error("that the page is broken could not be recorded: %s", error)
