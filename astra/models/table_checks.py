"""Check that a database has the tables that the models describe, before they are used."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import cast

import peewee
from peewee import Field, Model

from astra.config.secrets import hide_password
from astra.database.connection import connection, database, dialect, url
from astra.database.dialect import NO_COLUMN
from astra.errors import DatabaseError, TaskError
from astra.models.base import BaseModel, columns_of, missing_columns
from astra.models.importing import import_path
from astra.models.keys import changed_keys, key_of, may_change, modified_field
from astra.models.pipeline import OutputModel, link_of
from astra.models.plans import Plan, Schema
from astra.models.tracked_tables import is_tracked

#: The version of astra's own tables. A released change of a table raises it: `astra initdb` adds
#: what is missing, and until then commands say so instead of failing on a column.
VERSION = 1


def check_version() -> None:
    """Refuse to work on tables that are missing, or of another version of astra."""
    with current_tables():
        pass


@contextmanager
def current_tables() -> Iterator[None]:
    """Use a connection within a block, whose tables :func:`check_version` does not refuse."""
    with nullcontext() if is_missing_file() else connection():  # connecting would create it
        version = None if is_missing_file() else stored_version()
        if version is None:
            raise DatabaseError(
                f"the database {hide_password(url())} has no tables of astra; create them: "
                "astra initdb"
            )
        if version != VERSION:
            raise version_mismatch(version)
        yield


def stored_version() -> int | None:
    """Return the version of the tables; None where there are none."""
    if not dialect().columns(Schema):  # wherever the search_path has it
        return None
    return cast("int | None", Schema.select(peewee.fn.max(Schema.version)).scalar())


def is_missing_file() -> bool:
    """Return whether the database is a SQLite file that does not exist yet."""
    path = getattr(dialect(), "path", ":memory:")
    return path != ":memory:" and not Path(path).exists()


def version_mismatch(version: int) -> DatabaseError:
    """Return the error to raise about tables of another version."""
    remedy = "upgrade astra" if version > VERSION else "bring them up to date: astra initdb"
    return DatabaseError(
        f"the tables of {hide_password(url())} are of version {version}, this astra works with "
        f"{VERSION}; {remedy}"
    )


def check_tables(*models: type[Model]) -> None:
    """Refuse to work on tables that are missing, or lack a column."""
    for model in models:
        have = dialect().columns(model)
        if have and not missing_columns(model, have):
            continue
        defect, missing = f"no table {model._meta.table_name!r}", missing_columns(model, have)
        if have:
            names = ", ".join(map(repr, missing))
            defect = f"no column {names} in the table {model._meta.table_name!r}"
        raise DatabaseError(
            f"the database {hide_password(url())} has {defect}, which {import_path(model)} has; "
            + (
                f"create it: {command_for(model)}"
                if issubclass(model, BaseModel)
                else _correction(model, missing if have else [])
            )
        )


def _correction(model: type[Model], missing: Sequence[str]) -> str:
    """Return what to change in the model of a table that is not astra's."""
    if missing == ["id"]:
        return (
            "peewee adds id to a model without a key: declare the key of the table, by "
            "primary_key=True, or for several columns by CompositeKey in its Meta"
        )
    return "the table is not astra's: correct the model (class Meta: table_name, schema)"


def check_key_types(output: type[OutputModel], *models: type[Model]) -> None:
    """Refuse results whose key is of another type than that of their rows, or holds other values.

    Raises
    ------
    TaskError
        If the database cannot compare both, or would do so by the time zone of the session; if
        results would hold other keys.
    """
    for model in models:
        check_key_columns(output, model)
        _check_first_keys(output, model)


def check_key_columns(output: type[OutputModel], model: type[Model]) -> None:
    """Refuse results whose key is of another type than that of their rows, as their columns are."""
    link = link_of(output, model)
    for name, pointer in zip(link.row, link.result, strict=True):
        fields = model._meta.fields[name], output._meta.fields[pointer]
        if not link.is_whole:
            _check_collations(output, *fields)
        if (kinds := dialect().differing_types(*fields)) is None:
            continue
        kind, stored = kinds
        if kind.startswith("_"):
            raise TaskError(
                f"the key {model.__name__}.{name} is a column of arrays, which no page can "
                "hold: declare another unique column as the primary key of the model"
            )
        if kind == stored:
            raise TaskError(
                f"the key {model.__name__}.{name} is a column of the type {kind}, for which "
                "the database finds no operator =: declare another unique column as the "
                "primary key of the model, or, if its schema has the operator, set the role's "
                "search_path to include it (ALTER ROLE ... SET search_path)"
            )
        own = f'class OwnField(peewee.TextField): field_type = "{kind}"'
        raise TaskError(
            f"the key {model.__name__}.{name} is a column of the type {kind}, and its results "
            f"have {output.__name__}.{pointer} of the type {stored}, which the database "
            f"cannot compare reliably: declare the key as {_FIELDS.get(kind, own)}, "
            f"{_create_again(output)}"
        )


def _check_collations(output: type[OutputModel], key: Field, pointer: Field) -> None:
    """Refuse results whose keys may be equal where those of their rows differ, or the reverse."""
    first, second = dialect().collation(key), dialect().collation(pointer)
    if first != second:
        raise TaskError(
            f"{key.model.__name__}.{key.name} is compared by {first or 'its characters'}, and "
            f"{output.__name__}.{pointer.name} by {second or 'its characters'}, so that a row "
            f"could have two results, or share one: {_create_again(output)}"
        )


def _create_again(output: type[OutputModel]) -> str:
    """Return the end of a message: how columns of results become those of their rows' keys."""
    table = output._meta.table_name
    return f"drop the table {table} of the results, and create it again: {command_for(output)}"


def _check_first_keys(output: type[OutputModel], model: type[Model]) -> None:
    """Refuse a key of a type that Python, or the table of results, does not hold unchanged.

    Single rows with such keys fail when they are read.
    """
    key, stored = key_of(model), link_of(output, model).key(output)
    if not may_change(key, stored):
        return
    query = model.select(key.text, *key.fields).limit(100)
    try:
        rows = {
            text: [f.python_value(v) for f, v in zip(key.fields, values, strict=True)]
            for text, *values in database.execute(query).fetchall()
        }
    except ValueError as error:
        defect = f"its field does not read: {error}"
    else:
        if not rows or len(changed_keys(key, stored, rows)) < len(rows):
            return
        text, values = next(iter(rows.items()))
        defect = (
            f"the results, {output.__name__}, cannot hold unchanged: {text} is read as "
            f"{', '.join(map(repr, values))}"
        )
    names = ", ".join(field.name for field in key.fields)
    raise TaskError(
        f"the key of {model.__name__} ({names}) is of a type that {defect}; declare it as a "
        "TextField, or another unique column as the primary key of the model"
    )


#: The field that declares a type, where the usual fields of peewee have several for it.
FIELDS = {
    "int2": "SmallIntegerField", "int4": "IntegerField", "int8": "BigIntegerField",
    "text": "TextField", "varchar": "CharField", "bpchar": "FixedCharField",
    "uuid": "UUIDField", "date": "DateField", "timestamp": "DateTimeField",
    "numeric": "DecimalField", "float4": "FloatField", "float8": "DoubleField",
}  # fmt: skip

_FIELDS = {**FIELDS, "timestamptz": "DateTimeTZField of playhouse.postgres_ext"}


def check_guards(*models: type[Model]) -> None:
    """Refuse to work on tables without the indexes and triggers on which results depend.

    They are recognized by what they do: a table may have been replaced, or restored without them.
    """
    for model in models:
        if lacks := lacking_guard(model):
            raise DatabaseError(
                f"the table {model._meta.table_name!r} of {hide_password(url())} {lacks}"
            )


def other_tables(plan: Plan, models: Sequence[type[Model]]) -> str | None:
    """Describe how the tables of a plan differ from those of their names that this role finds."""
    found = dialect().places(models, Plan)
    if plan.tables is None or found == plan.tables:
        return None
    return (
        f"plan {plan.pk} is of the tables {plan.tables}, and this role finds {found}: its rows "
        "stay pending: have the search_path of the role changed, or name the schema in the model "
        "(class Meta: schema), then astra resume; if the tables were moved, cancel the plan and "
        "plan again"
    )


def lacking_guard(model: type[Model]) -> str | None:
    """Describe an index or trigger that results depend on and a table lacks, and the remedy."""
    lacks = None
    if columns := _missing_unique(model):
        if not dialect().columns(model):
            return f"does not exist; create it: {command_for(model)}"
        lacks = f"no unique index on ({columns}), so that a row could have two results"
    elif issubclass(model, OutputModel) and not _is_version_computed(model):
        table, name = dialect().table(model), "v_astra_major_minor"
        return (
            f"does not compute {name}, so that a row could have two results: it was replaced, or "
            f"restored without the expression: ALTER TABLE {table} DROP COLUMN {name}, and create "
            f"it again: {command_for(model)}"
        )
    elif (column := _column_of_trigger(model)) and not dialect().keeps_modified(model, column):
        lacks = f"no trigger that keeps `{column}`, so that changes would not be noticed"
    return lacks and (
        f"has {lacks}: it was replaced, or restored without it; create it again: "
        f"{command_for(model)}"
    )


def _is_version_computed(model: type[OutputModel]) -> bool:
    """Return whether the database computes the column that makes results unique by version."""
    return dialect().columns(model).get("v_astra_major_minor", NO_COLUMN).is_computed


def _missing_unique(model: type[Model]) -> str | None:
    """Return columns of a table that no index keeps unique, though its model declares one."""
    if issubclass(model, OutputModel):
        return next((", ".join(columns_of(index)) for index in model.lacking_indexes()), None)
    if not issubclass(model, BaseModel):
        return None
    for index in model._meta.fields_to_index():
        columns = columns_of(index)
        if not index._unique or index._where is not None:
            continue
        if not dialect().has_unique(model, columns, ""):
            return ", ".join(columns)
    return None


def _column_of_trigger(model: type[Model]) -> str | None:
    """Return the column in which astra's trigger stores when a row changed; None without one."""
    has_trigger = getattr(model, "is_input", False) or is_tracked(model)
    field = modified_field(model) if has_trigger else None
    return None if field is None else str(field.column_name)


def command_for(model: type[Model]) -> str:
    """Return the command that creates or completes a table, in a notebook the function."""
    module = model.__module__
    if module == "__main__":
        if (script := getattr(sys.modules[module], "__file__", None)) is None:
            return 'astra.api.init_database(["__main__"])'
        module = Path(script).stem
    command = "astra initdb" if module.startswith("astra.") else f"astra initdb {module}"
    name = getattr(model, "stands_for", model.__name__)
    return command + ("" if issubclass(model, BaseModel) else f" --track-changes {name}")
