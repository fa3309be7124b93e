"""Write batches of results, so that a result that the database refuses costs no other."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from astra.database.connection import database, dialect
from astra.database.dialect import Batch, CopyRefused, NotStored
from astra.models.keys import Link
from astra.models.pipeline import OutputModel
from astra.records import dataclass
from astra.results.rows import YieldedResult
from astra.version import CURRENT


def write_or_halve(
    places: range,
    write: Callable[[slice, bool], list[YieldedResult]],
    refuse: Callable[[int, Exception], None],
    may_copy: bool = True,
) -> list[YieldedResult]:
    """Write the items at some places in a savepoint; on an error halve them until the bad one is
    alone. Return what was stored. After an error, the transaction can still be used.

    Parameters
    ----------
    write : writes a slice of the items, by a COPY only if its second argument is true.
    refuse : is given the place of an item that the database refuses, and the error.
    """
    if not places:
        return []
    try:
        with database.atomic():
            return write(slice(places.start, places.stop), may_copy)
    except CopyRefused:
        return write_or_halve(places, write, refuse, may_copy=False)
    except Exception as error:
        if not dialect().is_rows_fault(error):
            raise
        if len(places) == 1:
            refuse(places[0], error)
            return []
    half = len(places) // 2
    first, second = places[:half], places[half:]
    return [*write_or_halve(first, write, refuse), *write_or_halve(second, write, refuse)]


@dataclass(frozen=True)
class Written:
    """The results of a batch that were written, and their primary keys by place in the batch.

    Without a batch, the rows with these primary keys were deleted.
    """

    model: type[OutputModel]
    pks: dict[int, int]
    batch: Batch | None = None
    results: Sequence[YieldedResult] = ()

    @property
    def is_plain(self) -> bool:
        """Whether only a later statement of astra can change what was written."""
        return self.batch is None or not self.pks or dialect().is_plain(self.batch)


def check(written: Sequence[Written]) -> None:
    """Check that what is stored is what was yielded, after the last statement for the same rows.

    Its triggers may change what an earlier one has written.

    Raises
    ------
    NotStored
        If it is not.
    """
    if all(part.is_plain for part in written):
        return
    replaced: defaultdict[type[OutputModel], set[int]] = defaultdict(set)
    for part in reversed(written):
        later = replaced[part.model]
        if part.batch is not None and not part.is_plain:
            kept = {place: pk for place, pk in part.pks.items() if pk not in later}
            dialect().compare(part.batch, kept)
        later.update(part.pks.values())


def store_batch(
    results: Sequence[YieldedResult],
    columns: dict[str, Sequence[object]],
    link: Link,
    may_copy: bool,
) -> Written:
    """Write results that set the same columns, unless later ones are in their place."""
    model = type(results[0].result)
    key = tuple(field.column_name for field in link.key(model).fields)
    batch = Batch(
        dialect().table(model), columns, (*key, "result_number"),
        (*key, "v_astra_major_minor", "result_number"), link.condition,
        model.task_pk.column_name, model,
    )  # fmt: skip
    written = dialect().upsert(batch, may_copy)
    _check_stored(results, written, link)
    if len(written) < len(results):
        results = [results[place] for place in sorted(written)]
    return Written(model, written, batch, results)


def _check_stored(results: Sequence[YieldedResult], written: Mapping[int, int], link: Link) -> None:
    """Check that each result was stored, or that a later one is in its place.

    Raises
    ------
    NotStored
        If a result is neither.
    """
    for place, yielded in enumerate(results):
        if place in written:
            continue
        result = yielded.result
        model, data = type(result), result.__data__
        later = (model.v_astra_major_minor == CURRENT.major_minor) & (
            model.result_number == data.get("result_number", 0)
        )
        for name in link.result:
            later &= getattr(model, name) == data[name]
        if data.get("input_read") is not None:
            later &= model.input_read > data["input_read"]
        if not model.select(model.task_pk).where(later).exists():
            raise NotStored(model._meta.table_name)
