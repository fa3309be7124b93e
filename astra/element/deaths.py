"""Record in an element's parent process how its child crashed.

Until then the parent needs no database: these modules are imported when the first child dies.
"""

import logging

from peewee import SQL

from astra.database.connection import dialect, retrying, writing
from astra.element.board import Board
from astra.element.controls import pause_if_all_break
from astra.element.suspects import Death, record_death
from astra.errors import AstraError
from astra.models.attempts import Attempt
from astra.models.plans import Page
from astra.results.rows import clean
from astra.states import AttemptState

log = logging.getLogger(__name__)


#: States of an attempt that its process did not end by itself. One that the row timeout
#: stopped calls itself interrupted.
_OPEN = (AttemptState.RUNNING.value, AttemptState.INTERRUPTED.value)


def note_death(board: Board, death: Death, peak_mb: float, alive: bool) -> bool:
    """Remember the rows in hand; whether there were any."""
    if not board.attempt_pk:
        log.error("the element's process %s before it claimed a page", death.cause)
        return False

    def work() -> bool:
        with writing():
            page = Page.get_by_id(board.page_pk)
            places = board.places(page.n_rows)
            values = {
                "message": clean(f"a row {death.cause}", 2000),
                "n_handed": -1,
                "max_rss_mb": peak_mb,
                "t_start_s": board.start_s,
            }
            if alive:
                values["state"] = AttemptState.DIED.value
            mine = (Attempt.pk == board.attempt_pk) & Attempt.state.in_(_OPEN)
            if page.attempt_pk == board.attempt_pk and Attempt.update(values).where(mine).execute():
                record_death(page.pk, places, death)
            return bool(places)

    try:
        known = retrying(work)
    except AstraError as error:
        log.error("the suspect rows could not be recorded: %s", error)
        return False
    log.error("the task %s; suspect rows: %d", death.cause, board.n_in_hand())
    return known


def give_up(board: Board, death: Death) -> None:
    """The process died again and again with no row in hand: it is the task, not a row."""
    message = f"its process crashed without a row in work: it {death.cause}"
    log.error("%s; the page stays pending", message)

    def work() -> None:
        with writing():
            broken = Attempt.update(
                state=AttemptState.BROKEN.value, message=message, ended=SQL(dialect().now_sql)
            )
            broken.where(Attempt.pk == board.attempt_pk).execute()
            pause_if_all_break(Page.get_by_id(board.page_pk).plan_pk)

    if board.attempt_pk:
        retrying(work)
