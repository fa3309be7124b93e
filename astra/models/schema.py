"""Create and complete the tables of a database."""

from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import cast

import peewee
from peewee import Model

from astra.database.connection import connection, database, dialect, long_s, retrying
from astra.database.dialect import NO_COLUMN, Column
from astra.database.inspection import server
from astra.errors import DatabaseError, NotAllowed, UsageError
from astra.models import import_all
from astra.models.administration import (
    LOCK_TIMEOUT_S,
    index_while_in_use,
    make_views,
    one_at_a_time,
    recorded,
)
from astra.models.archive import identify_archive
from astra.models.base import BaseModel, columns_gone, every_subclass, missing_columns
from astra.models.failures import RowWithoutResult
from astra.models.importing import import_named, import_path
from astra.models.pipeline import BASES, OutputModel
from astra.models.plans import Schema
from astra.models.roles import Grant, check_grants, give, parse_grants
from astra.models.table_checks import (
    VERSION,
    command_for,
    is_missing_file,
    stored_version,
    version_mismatch,
)
from astra.models.tracked_tables import track_changes

#: Models without a table of their own. All others that come with astra are imported by now, or by
#: `import_all`.
_ABSTRACT = {BaseModel, RowWithoutResult, *BASES}


def init_database(
    modules: tuple[str, ...] = (),
    grant: tuple[str, ...] = (),
    copied: bool = False,
    moved: bool = False,
    notes: list[str] | None = None,
    views: bool = False,
    tracked: Sequence[str] = (),
) -> list[str]:
    """Create missing tables, complete the others, and return the names of the new ones.

    Parameters
    ----------
    modules : tuple of str
        Modules whose tables are created too.
    grant : tuple of str
        Roles that are to use the tables, as ``ROLE:plans`` (see roles.py).
    copied, moved : bool
        What happened to the database since its archive was created elsewhere.
    notes : list of str, optional
        Everything else that was done is appended to it.
    views : bool
        Create a view ``TABLE_current`` of each table of results too.
    tracked : sequence of str
        Models of others' tables whose changes the database records from now on.

    Returns
    -------
    list of str
        Names of the new tables.

    Raises
    ------
    UsageError
        If a module cannot be imported, there is no such role, or anything given is not a name.
    DatabaseError
        If the tables were created by a later astra, or one is in use for too long.

    Examples
    --------
    >>> from astra.api import init_database
    >>> init_database()
    []
    """
    for name in _names("modules", modules):
        _import(name)
    with connection():
        if not database.in_transaction():
            index_while_in_use(tables())

    def init() -> tuple[list[str], list[str]]:
        noted: list[str] = []
        with database.atomic():
            new = _init(parse_grants(_names("grant", grant)), copied, moved, noted, views)
            return new, noted + [track_changes(name) for name in _names("tracked", tracked)]

    new, noted = retrying(init, LOCK_TIMEOUT_S, statement_s=long_s())  # elements may deadlock it
    if notes is not None:
        notes += noted
    return new


def sql_of(
    modules: tuple[str, ...] = (),
    grant: tuple[str, ...] = (),
    views: bool = False,
    tracked: Sequence[str] = (),
) -> str:
    """Return what :func:`init_database` would do, as SQL, by running and rolling it back.

    Raises
    ------
    DatabaseError
        As :func:`init_database` does; the role needs the right to create tables.
    """
    for name in _names("modules", modules):
        _import(name)
    new_file = is_missing_file()
    with connection(), recorded() as statements, database.atomic() as transaction:
        init_database((), grant, views=views, tracked=tracked)
        transaction.rollback()
    if new_file:
        database.close()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{getattr(dialect(), 'path', '')}{suffix}").unlink(missing_ok=True)
    return "\n".join(["BEGIN;", *statements, "COMMIT;"] if statements else ["-- nothing to do"])


def _init(
    wanted: list[Grant], copied: bool, moved: bool, notes: list[str], views: bool
) -> list[str]:
    """Run :func:`init_database` within its transaction."""
    one_at_a_time()
    check_grants(wanted)
    if (facts := server()).least:
        raise DatabaseError(f"{facts.name} is too old for astra: use {facts.least} or later")
    if schema := Schema._meta.schema:
        dialect().create_schema(schema)
    version = stored_version()
    if version is not None and version > VERSION:
        raise version_mismatch(version)
    new, own_models, owners = _make_tables(version, notes)
    if owners and (wanted or not new):
        raise NotAllowed(
            f"the role {database.obj.connection().info.user!r} is not the owner of the tables; "
            f"only {' or '.join(map(repr, owners))} may complete them and grant rights on them: "
            "run astra initdb as that role"
        )
    _upgrade(version)
    if not owners and (settled := identify_archive(copied, moved)):
        notes.append(settled)
    if views:
        notes.append(f"views: {', '.join(make_views(own_models))}")
    give(wanted, own_models)
    return new


def _make_tables(
    version: int | None, notes: list[str]
) -> tuple[list[str], list[type[BaseModel]], list[str]]:  # fmt: skip
    """Create or complete every table; return new names, models of this role, and other owners.

    Notes say what was added, and which columns of a table are not in its model.
    """
    new: list[str] = []
    own_models: list[type[BaseModel]] = []
    owners: set[str] = set()
    notes += _shared_tables()
    schema = Schema._meta.schema or dialect().schema_of_new_tables(Schema)
    for model in tables():
        _check_names(model)
        have = dialect().columns(model)
        if not have:
            new.append(model._meta.table_name)
            model._meta.schema = schema
        elif owner := dialect().other_owner(model):
            _check_others_table(model, have, owner, version)
            owners.add(owner)
            continue
        else:
            notes += _differences(model, have)
        model.create_table()
        own_models.append(model)
    return new, own_models, sorted(owners)


def _upgrade(version: int | None) -> None:
    """Store the version of astra's own tables, whose missing columns have been added."""
    if version is None:
        Schema.create(version=VERSION)
    elif version < VERSION:
        Schema.update(version=VERSION).execute()


def _names(what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return names as a tuple; a program may give a single one by itself."""
    listed = (names,) if isinstance(names, str) else tuple(names)
    for name in listed:
        if not isinstance(name, str):
            raise UsageError(f"{what}: {name!r} is not a name; give a list of names")
    return listed


def _import(name: str) -> None:
    if import_named(name) is None:
        package = name.rpartition(".")[0]
        hint = "is it installed, or in this folder?"
        if package and (above := import_named(package)) and not hasattr(above, "__path__"):
            hint = f"{package!r} is not a package; give the module alone: astra initdb {package}"
        raise UsageError(f"there is no module {name!r}; {hint}")


def _shared_tables() -> Iterator[str]:
    """Yield notes about models of results, of different modules, that share one table."""
    first: dict[str, type[BaseModel]] = {}
    for model in (m for m in tables() if issubclass(m, OutputModel)):
        other = first.setdefault(model._meta.table_name, model)
        if other.__module__ != model.__module__:
            yield (
                f"{model._meta.table_name}: {import_path(other)} and {import_path(model)} share "
                "this table, and rows with a result of one are not pending for the other; "
                "rename one of them, or import it from the other's module"
            )


def _differences(model: type[Model], have: dict[str, Column]) -> list[str]:
    """Describe the differences between a table and its model."""
    table, model_name = model._meta.table_name, import_path(model)
    notes = [f"{table}: added the column {name}" for name in missing_columns(model, have)]
    for name in columns_gone(model, have):
        drop = f"ALTER TABLE {dialect().table(model)} DROP COLUMN {dialect().quote(name)}"
        kept, column = "it is kept", have[name]
        if column.is_not_null and not (column.has_default or column.is_computed):
            is_dropped = dialect().drop_not_null(model, name)
            kept += ", empty in new rows" if is_dropped else ", and no row can be added"
        notes.append(
            f"{table}: the column {name} is no longer in {model_name}; {kept}. To drop it: {drop}"
        )
    for field in model._meta.sorted_fields:
        kind = have.get(field.column_name, NO_COLUMN).kind.lower()
        other = _OTHERS.get(field.field_type)
        if other and kind.startswith(other):
            notes.append(
                f"{table}: the column {field.column_name} is of the type {kind}, and {model_name} "
                f"has a {type(field).__name__}: change one of them"
            )
    return notes


_NUMBERS = ("integer", "bigint", "smallint", "real", "double", "numeric", "decimal")
_TEXTS = ("text", "character", "varchar", "char")

#: The beginnings of types of columns that cannot store the values of a field.
_OTHERS = {
    **dict.fromkeys(("INT", "BIGINT", "SMALLINT", "FLOAT", "DOUBLE", "DECIMAL"), _TEXTS),
    **dict.fromkeys(("TEXT", "VARCHAR", "CHAR"), _NUMBERS),
}


def _check_others_table(
    model: type[Model], have: Container[str], owner: str, version: int | None
) -> None:
    """Refuse a table of another role that is incomplete: only its owner can complete it."""
    missing = missing_columns(model, have)
    if missing or version != VERSION:
        lacks = f"lacks the column {missing[0]!r}" if missing else "is of another version of astra"
        raise NotAllowed(
            f"the table {model._meta.table_name!r} {lacks}, and belongs to the role {owner!r}, who "
            f"alone may change it: have {owner} run {command_for(model)}"
        )


def _check_names(model: type[Model]) -> None:
    """Refuse names that peewee would not quote properly, or PostgreSQL would truncate."""
    for name in (model._meta.table_name, *model._meta.columns):
        dialect().quote(name)
        if len(name.encode()) > 63:
            raise DatabaseError(
                f"{name!r}, of the model {model.__name__}, exceeds 63 bytes: "
                "shorten it (table_name in class Meta, column_name of a field)"
            )


def tables() -> list[type[BaseModel]]:
    """Return every table, each after those that it refers to."""
    import_all()
    models = [
        model
        for model in every_subclass(BaseModel)
        if model not in _ABSTRACT and not getattr(model._meta, "abstract", False)
    ]
    return cast("list[type[BaseModel]]", peewee.sort_models(models))  # type: ignore[attr-defined]


def own_tables() -> list[type[BaseModel]]:
    """Return the tables that come with astra."""
    return [model for model in tables() if model.__module__.startswith("astra.")]
