"""Results that are passed on as they come: neither batched nor written, only timed.

Rows are not kept, and cost next to nothing: about 2 microseconds each (benchmarks/decorator.py).
"""

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Any

from astra.guard import Guard
from astra.models.pipeline import PipelineOutputModel
from astra.run import set_times


class _Nothing:
    """The writer of a run that the end of the process finds nothing to write of."""

    def write_all(self) -> None:
        """There is nothing."""


def passed_on(
    rows: Callable[[], Iterable[Any]],
    call: Callable[[Iterator[Any]], Iterator[Any]],
    n_rows: int | None,
) -> Iterator[Any]:
    """The results of a task, each as soon as it is yielded, with the time that its row took.

    Parameters
    ----------
    rows : opens what the task is to process.
    call : calls the task with an iterator of rows.
    n_rows : how many there are, where that is known.
    """
    mark = perf_counter()  # since when the task has the word
    row: Any = None  # the last that was handed over
    after: Any = None  # its result, once there is one
    row_s = others_s = overhead_s = 0.0  # not yet in a result: of it, of others in hand, of none
    n_open = n_results = 0  # rows without a result, results
    asked = at_end = False  # for a row since the last result; told that there are no more
    model: Any = None  # of the results up to now, which is faster to ask than its ancestors
    trouble: Exception | None = None

    def hand() -> Iterator[Any]:
        nonlocal mark, row, after, row_s, others_s, overhead_s, n_open, asked, at_end, trouble
        overhead_s += perf_counter() - mark
        try:
            for given in rows():
                others_s += row_s
                row, after, row_s, asked = given, None, 0.0, True
                n_open += 1
                mark = perf_counter()
                yield given
                if after is None:
                    row_s += perf_counter() - mark
                else:  # work that the task does on a row after its result
                    after.__data__["t_elapsed"] += perf_counter() - mark
        except Exception as error:  # not the task's doing, though it comes out through the task
            trouble = error
            raise
        asked = at_end = True
        mark = perf_counter()

    nothing = _Nothing()
    Guard.enter(nothing)
    generator = call(hand())
    try:
        mark = perf_counter()
        for result in generator:
            spent_s = perf_counter() - mark
            if result is ...:
                row_s += spent_s
                mark = perf_counter()
                continue
            if n_open == 1:
                spent_s += row_s + others_s
                row_s = others_s = 0.0
            elif n_open and not at_end and after is None and _is_of(result, row):
                spent_s += row_s
                row_s = 0.0
            elif n_open:  # a task that took several rows first has worked on all of them
                pool_s = others_s + row_s + (spent_s if asked else 0.0)
                spent_s = pool_s / n_open + (0.0 if asked else spent_s)
                others_s, row_s = pool_s - pool_s / n_open, 0.0
            n_open -= n_open > 0
            n_results += 1
            asked = False
            if type(result) is model or isinstance(result, PipelineOutputModel):
                set_times(result, spent_s, overhead_s / (n_rows or n_results))
                after, model = result, type(result)
            if Guard.told:
                Guard.check()
            yield result
            mark = perf_counter()
        if trouble is not None:
            raise trouble
    finally:
        generator.close()  # type: ignore[attr-defined]
        Guard.leave(nothing)


def _is_of(result: Any, row: Any) -> bool:
    """Whether a result bears the key of a row."""
    data, of = getattr(result, "__data__", {}), getattr(row, "__data__", {})
    key = data.get("spectrum_pk")
    return (
        key == of.get("spectrum_pk") if key is not None else data.get("source_pk") == of.get("pk")
    )
