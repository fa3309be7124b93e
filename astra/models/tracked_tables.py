"""Track changes of tables that astra did not create, by a trigger that --track-changes adds."""

import peewee
from peewee import TextField

from astra.database.connection import database, dialect
from astra.errors import NotAllowed, UsageError, nearest
from astra.models.base import BaseModel, TimeField, every_subclass, order_index
from astra.models.keys import bound_to_database, key_of, modified_field, table_name


class TrackedTable(BaseModel):
    """A table that astra did not create, and whose changes it tracks."""

    name = TextField(primary_key=True)  # with its schema, if it has one
    column_name = TextField()

    class Meta:
        table_name = "astra_tracked_table"


def is_tracked(model: type[peewee.Model]) -> bool:
    """Return whether astra's trigger stores when rows of a model's table change."""
    if getattr(model, "is_input", False) or modified_field(model) is None:
        return False
    return bool(TrackedTable.select().where(TrackedTable.name == table_name(model)).exists())


def tracked_model(table: str, path: str) -> type[peewee.Model] | None:
    """Return a model of a tracked table with only the column of its changes.

    Its own model, of which `path` is the import path, may not be imported.
    """
    tracked = TrackedTable.get_or_none(TrackedTable.name == table)
    if tracked is None:
        return None
    schema, _, name = table.rpartition(".")
    column, (module, _, model) = tracked.column_name, path.partition(":")
    options = {"table_name": name, "schema": schema or None, "modified": column}
    attributes = {column: TimeField(), "Meta": type("Meta", (), options), "__module__": module}
    attributes["stands_for"] = model
    return type("Tracked", (peewee.Model,), attributes)


def track_changes(name: str) -> str:
    """Make the database record when rows of a table change; return what was done.

    If the table lacks the column that the model's ``class Meta: modified`` names, it is added
    without values, so that existing results stay up to date. A trigger sets it in rows that are
    inserted or changed from now on.

    Parameters
    ----------
    name : of a model, or of its table.

    Raises
    ------
    UsageError
        If there is no such model, or it names no column for the time of changes.
    NotAllowed
        If the table is a view, or belongs to another role.
    """
    model = _model_named(name)
    field = modified_field(model)
    have = dialect().columns(model)
    if not isinstance(field, peewee.DateTimeField) or not (field.null or field.column_name in have):
        raise UsageError(
            f"{model.__name__} names no column that can hold when a row changed: give it a field, "
            '`changed = DateTimeField(null=True)`, and `class Meta: modified = "changed"`'
        )
    engine, column, table = dialect(), field.column_name, table_name(model)
    views = {view.name for view in database.get_views(model._meta.schema)}
    if not have or model._meta.table_name in views:
        raise NotAllowed(f"there is no table {table}, so its changes cannot be tracked")
    if owner := engine.other_owner(model):
        raise NotAllowed(
            f"the table {table} belongs to the role {owner!r}, who alone may add to it: have "
            f"{owner} run this command"
        )
    if column not in have:
        engine.add_column(model, field, None)
    keys = [key.column_name for key in key_of(model).fields]
    engine.keep_modified(model, keys, column)
    database.execute(order_index(model, key_of(model).fields, field, nulls=True))
    TrackedTable.delete().where(TrackedTable.name == table).execute()
    TrackedTable.create(name=table, column_name=column)
    return f"{table}: the column {column} stores when a row changes"


def _model_named(name: str) -> type[peewee.Model]:
    others = (m for m in every_subclass(peewee.Model) if not issubclass(m, BaseModel))
    models: list[type[peewee.Model]] = [bound_to_database(model) for model in others]
    by_name = {n: m for m in models for n in (m._meta.table_name, m.__name__)}
    if name not in by_name:
        raise UsageError(
            f"--track-changes {name}: no model of the given modules has this name or table. "
            f"{nearest(name, by_name)}"
        )
    return by_name[name]
