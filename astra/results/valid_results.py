"""Decide which results of a checkpoint may be stored, and refuse the others.

All results of a row are stored together, or none. A result that points to its own row is numbered
within the row. A result of another row of the group, or of a spectrum of the source that the row
is, is identified by its own key.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Sequence
from gc import get_referents
from itertools import chain

from astra.database.connection import dialect
from astra.errors import BrokenElement
from astra.models.keys import Link
from astra.models.pipeline import BASES, OutputModel
from astra.results.claim import Claim
from astra.results.columns import BY_DATABASE, set_origin
from astra.results.rows import (
    HOW_TO_NAME,
    MESSAGE_LIMIT,
    Refusal,
    Target,
    YieldedResult,
    clean,
    foreign_row_message,
)
from astra.states import Outcome
from astra.version import CURRENT, Version

#: The results of one row.
Row = Sequence[YieldedResult]


def good_rows(
    results: list[YieldedResult], target: Target, claim: Claim | None, refused: list[Refusal]
) -> list[Row]:
    """Return the results that may be stored, by row; refuse all of a row if one may not."""
    if not target.gathers and _are_all_storable(results, target, claim):
        set_origin(results, target, claim)
        return list(zip(results, strict=True))  # faster than a list for each row
    seen: set[object] = set()
    good = []
    for row in _by_row(results, target):
        try:
            key = _check_row(row, target, claim, seen)
        except ResultRefused as error:
            refused.append(error.refusal)
        else:
            good.append(row)
            if not target.gathers:  # else the results of the later row replace the others
                seen.add(key)
    return good


def _by_row(results: list[YieldedResult], target: Target) -> Iterable[Row]:
    if not target.gathers:
        return zip(results, strict=True)
    rows: dict[int, list[YieldedResult]] = {}
    for yielded in results:
        # What is yielded after the end of its row is refused without the row's own results.
        rows.setdefault(id(yielded if yielded.again else yielded.handed), []).append(yielded)
    return rows.values()


def _check_row(row: Row, target: Target, claim: Claim | None, seen: Container[object]) -> object:
    """Complete the results of a row; return its key, or else the value that they point to.

    Raises
    ------
    ResultRefused
        If one of them may not be stored.
    """
    handed, key = row[0].handed, None
    for yielded in row:
        result = yielded.result
        _check_model(yielded, target.output)
        if target.gathers and yielded.again:
            message = "the row that the result is of has ended"
            raise ResultRefused(yielded, "RowEnded", message, True)
        link, of_row = target.index_of(result), target.link_for(result)
        link_value = None if link is None else link.of_result(result)
        if link is None or of_row is None or link_value is None:
            raise ResultRefused(yielded, *_key_problem(result, target))
        is_own = link == of_row  # else it is of a spectrum of a source
        if is_own and not target.groups and handed.link_value not in (None, link_value):
            raise ResultRefused(yielded, "ForeignRow", foreign_row_message(link_value, target))
        # Pages identify rows by texts of their keys.
        key = link_value if handed.key is None else handed.key
        if yielded.again or key in seen or (claim is not None and claim.has_result(key)):
            raise ResultRefused(yielded, "DuplicateResult", _second_result(key, target), True)
        set_origin([yielded], target, claim)
        if not is_own:
            (named,) = of_row.result
            if result.__data__.setdefault(named, None) is None:
                result.__data__[named] = handed.link_value
            if (source := of_row.of_result(result)) != handed.link_value:
                raise ResultRefused(yielded, "ForeignRow", foreign_row_message(source, target))
            # It is up to date as long as the row that it was computed from.
            result.__data__["input_modified"] = handed.modified
    if target.gathers:
        _number(row, target)
    return key


def _number(row: Row, target: Target) -> None:
    """Number the results of a row that have the same key, or refuse the second of them."""
    by_key: defaultdict[tuple[Link, object], list[YieldedResult]] = defaultdict(list)
    for yielded in row:
        if (link := target.index_of(yielded.result)) is not None:
            by_key[link, link.of_result(yielded.result)].append(yielded)
    for (_, key), alike in by_key.items():
        if len(alike) > 1 and not target.many:
            raise ResultRefused(alike[1], "DuplicateResult", _second_result(key, target))
        for number, yielded in enumerate(alike):
            yielded.result.__data__["result_number"] = number
            if target.many:
                yielded.result.__data__["results_of_row"] = len(alike)


def _second_result(key: object, target: Target) -> str:
    """Return the message of a further result of a row that has one."""
    hint = (
        "" if target.many else "; if a row may have several, declare the task with @task(many=True)"
    )
    return f"a second result for {key}{hint}"


def _are_all_storable(results: list[YieldedResult], target: Target, claim: Claim | None) -> bool:
    """Return whether :func:`_check_row` would certainly refuse none of the results."""
    if {type(yielded.result) for yielded in results} != {target.output}:
        return False
    versions = [yielded.result.__data__.get("v_astra") for yielded in results]
    return (
        set(map(type, versions)) == {int}
        and set(versions) == {CURRENT.number}
        and not any(yielded.again for yielded in results)
        and not _unknown_attributes(results)
        and (keys := _plain_keys(results, target)) is not None
        and len(set(keys)) == len(keys)
        and (claim is None or _are_pending(keys, claim))
    )


def _plain_keys(results: list[YieldedResult], target: Target) -> list[object] | None:
    """Return the keys of the rows of results; None if one of them has to be looked at by itself."""
    link = target.link
    if link is None or not link.is_whole:
        values = [target.link_value_of(yielded.result) for yielded in results]
        rows = [yielded.handed for yielded in results]
        if None in values or values != [handed.link_value for handed in rows]:
            return None
        return [handed.link_value if handed.key is None else handed.key for handed in rows]
    keys = [yielded.result.__data__.get(link.result[0]) for yielded in results]
    plain = set(map(type, keys)) == {int} and -(2**63) <= min(keys) <= max(keys) < 2**63
    return keys if plain and keys == [yielded.handed.key for yielded in results] else None


def _are_pending(keys: list[object], claim: Claim) -> bool:
    places = [place for place in map(claim.positions.get, keys) if place is not None]
    ended = {claim.outcomes[place] for place in places}
    return len(places) == len(keys) and Outcome.RESULT.value not in ended


class ResultRefused(Exception):
    def __init__(
        self,
        yielded: YieldedResult,
        kind: str,
        message: str,
        refused: bool = False,
        is_mistake: bool = False,
    ) -> None:
        self.refusal = Refusal(
            yielded.handed, kind, message, yielded.place, refused=refused or yielded.again,
            is_mistake=is_mistake or kind in _MISTAKES,
        )  # fmt: skip


#: Refusals that are mistakes of the task: any of its rows may meet them.
_MISTAKES = frozenset(
    {"WrongModel", "WrongVersion", "NoColumn", "NoKey", "NotStored", "ForeignRow"}
)


def refused_by_database(yielded: YieldedResult, error: Exception) -> Refusal:
    """Return why the database refused a result.

    Raises
    ------
    BrokenElement
        If it would refuse every row of the task, so that none of them is to blame.
    """
    model = type(yielded.result)
    message = clean(dialect().message(error), MESSAGE_LIMIT)
    if dialect().is_tables_fault(error, model, set(model._meta.columns) - BY_DATABASE):
        raise BrokenElement(
            f"the table {model._meta.table_name} takes no result of {model.__name__}: {message}; "
            "its rows stay pending: repair the table, then astra resume"
        ) from error
    kind, by_trigger = type(error.__cause__ or error).__name__, dialect().is_triggers(error)
    return ResultRefused(yielded, kind, message, is_mistake=by_trigger).refusal


def _check_model(yielded: YieldedResult, output: type[OutputModel] | None) -> None:
    """Refuse what is not a result of this version in the table that the task writes."""
    result = yielded.result
    name = type(result).__name__
    if isinstance(result, type):
        name = f"the class {result.__name__} itself"
    if output is None:
        is_right = isinstance(result, OutputModel) and type(result) not in BASES
        expected = "a row of a subclass of OutputModel"
    else:
        is_right, expected = type(result) is output, output.__name__
    if not is_right:
        raise ResultRefused(yielded, "WrongModel", f"{name} was yielded, not {expected}")
    for unknown in _unknown_attributes([yielded]):
        raise ResultRefused(yielded, "NoColumn", result.no_column(unknown))
    version = result.__data__.get("v_astra")
    if not isinstance(version, int) or Version(version).major_minor != CURRENT.major_minor:
        message = f"v_astra={version!r}: leave it out; it is that of this astra, {CURRENT.number}"
        raise ResultRefused(yielded, "WrongVersion", message)


#: What an object with peewee's attributes alone refers to: their values, and its class. One whose
#: attributes are in a dictionary refers to two objects.
_N_REFERENTS = 1 + len(("__data__", "_dirty", "__rel__"))


def _unknown_attributes(results: Sequence[YieldedResult]) -> list[str]:
    """Return the attributes of results, all of one model, that are no columns and would be lost.

    Attributes that the class of the user's model defines, or that begin with an underscore, are
    not meant as columns.
    """
    objects = [yielded.result for yielded in results]
    # Python makes the dictionary of an object's attributes when it is first asked for, and is
    # slower with it from then on. Most results have no other attributes than peewee's.
    if len(get_referents(*objects)) == _N_REFERENTS * len(objects):
        return []
    own_classes = set(type(objects[0]).__mro__).difference(OutputModel.__mro__)
    names = set(chain.from_iterable(map(vars, objects)))
    return [
        name
        for name in names
        if not name.startswith("_") and not any(name in vars(own) for own in own_classes)
    ]


def _key_problem(result: OutputModel, target: Target) -> tuple[str, str]:
    link = target.link_for(result)
    if link is None:
        name, model = type(result).__name__, getattr(target.model, "__name__", "its row")
        return "NoKey", f"{name} does not say how it points to {model}: declare result_of({model})"
    key_values = {name: result.__data__.get(name) for name in link.result}
    names = " and ".join(key_values)
    if all(value is None for value in key_values.values()):
        return "NoKey", f"the result has no {names}; {HOW_TO_NAME}"
    value = clean(
        repr(next(iter(key_values.values()))) if len(key_values) == 1 else repr(key_values), 200
    )
    kind = "a whole number of 64 bits" if link.is_whole else "the key of a row"
    return "BadKey", f"{names}={value} is not a key: {kind}"
