"""``--where``: a condition on the columns of an input table, parsed by Python's own parser.

Its columns and literals become an expression of peewee's; literals are passed as parameters, and no
part of the text is inserted into SQL. A column that is NULL does not meet any comparison.
"""

import ast
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import cast
from uuid import UUID

import peewee
from peewee import ColumnBase, EnclosedNodeList, Expression, Model, NodeList, Value, fn

from astra.config.value_checks import is_utf8
from astra.database.connection import dialect
from astra.errors import TaskError, nearest
from astra.models.base import TimeField
from astra.models.keys import Key
from astra.records import dataclass

#: Bounds on the text and on its nesting, which no text that a person writes reaches.
MAX_CHARACTERS, MAX_LEVELS = 20_000, 40
_TOO_DEEP = f"it has more than {MAX_LEVELS} levels"

_KINDS = {
    "FLOAT": "number", "DOUBLE": "number", "DECIMAL": "number",
    "TEXT": "text", "VARCHAR": "text", "CHAR": "text", "BOOL": "true or false",
    "DATE": "time", "DATETIME": "time", "TIMESTAMP": "time", "MOMENT": "time",
    "TIMESTAMPTZ": "time", "UUID": "UUID",
}  # fmt: skip

_COMPARED = {ast.Eq: "=", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}

_COMPUTED: dict[type, tuple[str, Callable[[object, object], object]]] = {
    ast.Add: ("+", operator.add), ast.Sub: ("-", operator.sub), ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv), ast.Mod: ("%", operator.mod),
}  # fmt: skip

_ALLOWED = (
    "it may contain columns, numbers, texts in quotes, True, False, comparisons, and, or, not, "
    "in [...], is None, and + - * / %"
)


Literal = bool | int | float | str | datetime | UUID | None


@dataclass(frozen=True)
class _Term:
    """A part of the condition that has a value."""

    kind: str
    sql: ColumnBase
    value: Literal = None
    is_literal: bool = False
    is_whole: bool = False


class _Refused(Exception):
    pass


def condition(model: type[Model], text: str) -> ColumnBase:
    """Parse a condition, for a query on an input model.

    Raises
    ------
    TaskError
        If the text is not a condition on the model's columns.
    """
    try:
        return _Translator(model).condition(_parse(text), 0)
    except (_Refused, ValueError) as error:  # a number of too many digits cannot be shown
        raise TaskError(f"--where {text[:200]!r}: {error}") from None


def _parse(text: object) -> ast.expr:
    if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
        raise _Refused(
            f"write a text of at most {MAX_CHARACTERS:,} characters; for more rows, use --keys"
        )
    text = text.replace("\n", " ").strip()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        at = error.offset or 1
        hint = "; to compare, write ==" if text[at - 1 : at] == "=" else ""
        raise _Refused(f"it cannot be read, from character {at}: {error.msg}{hint}") from None
    except ValueError:
        raise _Refused(f"it cannot be read; {_ALLOWED}") from None
    except (RecursionError, MemoryError):  # later versions of Python read more levels
        raise _Refused(_TOO_DEEP) from None


class _Translator:
    """Translate the nodes of Python's parser into expressions on the columns of a model.

    Every method raises `_Refused` for a node that a condition may not contain; `level` is the depth
    of its nesting.
    """

    def __init__(self, model: type[Model]) -> None:
        self.model = model

    # -- conditions -------------------------------------------------------------------------

    def condition(self, node: ast.expr, level: int) -> ColumnBase:
        """Translate a node that is true or false of a row."""
        self._check_level(level)
        if isinstance(node, ast.BoolOp):
            join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            return _balanced([self.condition(v, level + 1) for v in node.values], join)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand, level + 1)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            pairs = zip(sides, node.ops, sides[1:], strict=False)
            return _balanced([self._comparison(*pair, level) for pair in pairs], operator.and_)
        term = self.term(node, level)
        if term.kind != "true or false" or term.is_literal:
            raise _Refused(f"{_quoted(node)} is not a condition: compare it with something")
        return Expression(term.sql, "=", Value(True, converter=False))

    def _check_level(self, level: int) -> None:
        if level > MAX_LEVELS:
            raise _Refused(_TOO_DEEP)

    def _comparison(
        self, left: ast.expr, how: ast.cmpop, right: ast.expr, level: int
    ) -> ColumnBase:
        """Translate one comparison: with None, with a list, or of two terms of the same kind."""
        if isinstance(how, ast.Is | ast.IsNot):
            term = self.term(left, level + 1)
            if term.is_literal or not (isinstance(right, ast.Constant) and right.value is None):
                raise _Refused(
                    f"{_quoted(left)} is ...: `is` is allowed only before None and after a column"
                )
            return term.sql.is_null(isinstance(how, ast.Is))
        if isinstance(how, ast.In | ast.NotIn):
            return self._membership(left, how, right, level)
        first, second = self.term(left, level + 1), self.term(right, level + 1)
        if first.is_literal and second.is_literal:
            raise _Refused(
                f"{_quoted(left)} and {_quoted(right)} are compared, but neither is a column"
            )
        first, second = _converted_for(first, second), _converted_for(second, first)
        if first.kind == "other" or first.kind != second.kind:
            raise _Refused(
                f"{_quoted(left)} ({first.kind}) cannot be compared with {_quoted(right)} "
                f"({second.kind})"
            )
        is_order = not isinstance(how, ast.Eq | ast.NotEq)
        if is_order and first.kind in ("true or false", "UUID"):
            raise _Refused(f"{_quoted(left)} has no order: compare it by == or !=")
        return Expression(first.sql, _COMPARED[type(how)], second.sql)

    def _membership(
        self, left: ast.expr, how: ast.cmpop, right: ast.expr, level: int
    ) -> ColumnBase:
        """Translate ``in`` or ``not in``: a column, and a list of literals of its kind."""
        term = self.term(left, level + 1)
        if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not right.elts:
            raise _Refused(f"{_quoted(left)} in {_quoted(right)}: write a list, such as in [1, 2]")
        if term.is_literal:
            raise _Refused(f"{_quoted(left)} is not a column")
        values = []
        for item in right.elts:
            value = _converted_for(self.term(item, level + 1), term)
            if not value.is_literal or value.kind != term.kind:
                raise _Refused(
                    f"{_quoted(item)} in the list for {_quoted(left)} is not of the type "
                    f"{term.kind}"
                )
            values.append(value.sql)
        op = "IN" if isinstance(how, ast.In) else "NOT IN"
        return Expression(term.sql, op, EnclosedNodeList(values))

    # -- terms ------------------------------------------------------------------------------

    def term(self, node: ast.expr, level: int) -> _Term:
        """Translate a node that has a value: a literal, a column, or a computation."""
        self._check_level(level)
        if isinstance(node, ast.Constant):
            return _literal(node.value)
        if isinstance(node, ast.Name):
            return self._column(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            # A sign is a computation with 0.
            op = ast.Sub() if isinstance(node.op, ast.USub) else ast.Add()
            return self._computation(_literal(0), op, self.term(node.operand, level + 1), node)
        if isinstance(node, ast.BinOp) and type(node.op) in _COMPUTED:
            sides = self.term(node.left, level + 1), self.term(node.right, level + 1)
            return self._computation(sides[0], node.op, sides[1], node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            raise _Refused(f"{_quoted(node)}: write `and`, `or` instead of & and |")
        raise _Refused(f"{_quoted(node)} is not allowed: {_ALLOWED}")

    def _column(self, name: str) -> _Term:
        """Return the term of a column, by its own name or that of its field."""
        meta = self.model._meta
        if name not in meta.combined:
            raise _Refused(
                f"{self.model.__name__} has no column {name!r}. {nearest(name, meta.columns)} "
                f"A text needs quotes: '{name}'"
            )
        field = meta.combined[name]
        kind_of = getattr(field, "rel_field", field)
        if Key((kind_of,)).is_whole:
            return _Term("number", field, is_whole=True)
        is_text = isinstance(kind_of, peewee.TextField | peewee.CharField)  # as of an enum
        kind = _KINDS.get(kind_of.field_type, "text" if is_text else "other")
        if kind == "time" and not isinstance(field, TimeField):
            return _Term(kind, dialect().as_moment(field))
        return _Term(kind, field)

    def _computation(self, first: _Term, op: ast.operator, second: _Term, node: ast.expr) -> _Term:
        """Translate + - * / or % of two numbers; a division by zero gives NULL."""
        if first.kind != "number" or second.kind != "number":
            raise _Refused(f"{_quoted(node)} is computed, but not only from numbers")
        if first.is_literal and second.is_literal:
            try:
                return _literal(_COMPUTED[type(op)][1](first.value, second.value))
            except (ArithmeticError, ValueError) as error:
                raise _Refused(f"{_quoted(node)}: {error}") from None
        is_whole = first.is_whole and second.is_whole
        if isinstance(op, ast.Mod) and not is_whole:
            raise _Refused(f"{_quoted(node)}: % is for whole numbers")
        exact = is_whole and not isinstance(op, ast.Div)
        # The type numeric does not overflow; a division is one of floats, as in Python.
        kind = "numeric" if exact else "double precision"
        left: ColumnBase = first.sql.cast(kind)
        right: ColumnBase = second.sql.cast(kind)
        if isinstance(op, ast.Div | ast.Mod):
            right = fn.NULLIF(right, 0)
        if isinstance(op, ast.Mod):  # with the sign of the divisor, as in Python
            mark = peewee.SQL("%%" if dialect().name == "postgresql" else "%")
            rest = EnclosedNodeList([NodeList((left, mark, right))])
            shifted = EnclosedNodeList([NodeList((rest, peewee.SQL("+"), right))])
            return _Term(
                "number", EnclosedNodeList([NodeList((shifted, mark, right))]), is_whole=True
            )
        return _Term("number", Expression(left, _COMPUTED[type(op)][0], right), is_whole=exact)


def _literal(value: object) -> _Term:
    if isinstance(value, bool):
        return _Term("true or false", Value(value, converter=False), value, True)
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return _Term("number", Value(value, converter=False), value, True, True)
    if isinstance(value, float) and math.isfinite(value):
        return _Term("number", Value(value, converter=False), value, True)
    if isinstance(value, str) and "\0" not in value and is_utf8(value):
        return _Term("text", Value(value, converter=False), value, True)
    hint = "; write `is None`" if value is None else f"; {_ALLOWED}"
    raise _Refused(f"{str(value)[:50]!r} cannot be compared{hint}")


def _converted_for(term: _Term, other: _Term) -> _Term:
    """Return a term; a text that is compared with a time or a UUID is converted to one."""
    if not term.is_literal or term.kind != "text" or other.kind not in ("time", "UUID"):
        return term
    try:
        if other.kind == "UUID":
            uuid = UUID(str(term.value))
            stored = cast("peewee.Field", other.sql).db_value(uuid)
            return _Term("UUID", Value(stored, converter=False), uuid, True)
        at = datetime.fromisoformat(str(term.value))
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        is_ours = isinstance(other.sql, TimeField)
        stored = TimeField().db_value(at if is_ours else dialect().rounded(at))
    except (ValueError, OverflowError):
        example = "a time, such as '2026-01-31'" if other.kind == "time" else "a UUID"
        raise _Refused(f"{str(term.value)[:50]!r} is not {example}") from None
    return _Term("time", Value(stored, converter=False), at, True)


def _balanced(
    clauses: Sequence[ColumnBase], join: Callable[[ColumnBase, ColumnBase], ColumnBase]
) -> ColumnBase:
    """Join clauses as a balanced tree: a database limits the depth of an expression."""
    if len(clauses) == 1:
        return clauses[0]
    half = len(clauses) // 2
    return join(_balanced(clauses[:half], join), _balanced(clauses[half:], join))


def _quoted(node: ast.expr) -> str:
    try:
        return f"`{ast.unparse(node)[:80]}`"
    except RecursionError:  # the parser allows more levels than can be written again
        return "a part of too many levels"
