"""Times that are known only after their results were written: mended at the end of a run."""

import weakref
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import peewee

from astra import log
from astra.database import apart, aside, dialect, retrying, writing
from astra.errors import DatabaseError
from astra.results import Claim

#: A difference that is not worth a statement [s].
NEGLIGIBLE_S = 1e-3


def _as_written(result: Any) -> tuple[Any, float]:
    """The table of a result, and the overhead that it was written with."""
    return type(result), result.__data__.get("t_overhead") or 0.0


class Corrections:
    """What is to be mended of the results of a run, and no more of them than that."""

    def __init__(self, claim: Claim | None) -> None:
        self.claim = claim
        self.overheads: dict[tuple[Any, float], list[int]] = {}  # task_pk, by table and as written
        self.kept: list[tuple[float, Any]] = []  # as written, and the result, if somebody has it
        self.elapsed: dict[tuple[Any, int], float] = {}  # of (table, task_pk)
        self.unwritten: list[Any] = []  # results that are being written, with a longer time

    def stored(self, results: Iterable[Any]) -> None:
        """These were written, as they are."""
        for (model, overhead_s), alike in groupby(results, _as_written):
            some = list(alike)
            pks = self.overheads.setdefault((model, overhead_s), [])
            pks += [result.__data__["task_pk"] for result in some]
            if self.claim is None:  # who runs a page does not look at its results
                self.kept += [(overhead_s, weakref.ref(result)) for result in some]
        written, self.unwritten = self.unwritten, []
        for result in written:
            self._note(result)

    def longer(self, result: Any, spent_s: float) -> None:
        """A result that a checkpoint has taken took longer than it says there."""
        if spent_s < NEGLIGIBLE_S:
            return
        result.__data__["t_elapsed"] += spent_s
        self._note(result)

    def _note(self, result: Any) -> None:
        if result.__data__.get("task_pk") is None:
            self.unwritten.append(result)
        else:
            self.elapsed[type(result), result.task_pk] = result.t_elapsed

    def write(self, overhead_s: float) -> None:
        """Mend what was written, and set the overhead of the results that somebody still has."""
        self.stored(())
        changes = [(m, [pk], {"t_elapsed": t}) for (m, pk), t in self.elapsed.items()]
        wrong: dict[Any, list[int]] = {}
        for (model, written_s), pks in self.overheads.items():
            if abs(written_s - overhead_s) > NEGLIGIBLE_S:
                wrong.setdefault(model, []).extend(pks)
        for written_s, result in self.kept:
            if abs(written_s - overhead_s) > NEGLIGIBLE_S and (found := result()) is not None:
                found.__data__["t_overhead"] = overhead_s
        changes += [(model, keys, {"t_overhead": overhead_s}) for model, keys in wrong.items()]
        if not changes:
            return
        if self.claim is None:
            apart(lambda: retrying(lambda: self._update(changes)))
            return
        try:
            aside(lambda: retrying(lambda: self._update(changes), bound_s=5))
        except (DatabaseError, peewee.PeeweeException) as error:
            # The results stand; how time is shared out is no reason to fail.
            log.warning("times could not be corrected: %s", error)

    def _update(self, changes: list[tuple[Any, list[int], dict[str, float]]]) -> None:
        with writing():
            for model, keys, values in changes:
                clause = dialect().among(model.task_pk, keys)
                if self.claim is not None:
                    clause &= model.attempt_pk == self.claim.attempt.pk
                model.update(values).where(clause).execute()
