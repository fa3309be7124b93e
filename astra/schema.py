"""The tables of a database: made, completed, and known by a version."""

import importlib
from pathlib import Path
from typing import Any

import peewee

from astra import models as science
from astra.config import hide_password
from astra.database import connection, database, dialect, url
from astra.errors import DatabaseError, UsageError
from astra.grants import check_grants, give, parse_grants
from astra.models.base import BaseModel, every_subclass
from astra.models.orchestration import ORCHESTRATION, RowWithoutResult, Schema
from astra.models.pipeline import PipelineOutputModel

#: The version of astra's own tables. A change of them raises it and adds a step to _STEPS.
VERSION = 2

#: version -> SQL statements that bring tables of the version before up to it.
_STEPS: dict[int, tuple[str, ...]] = {
    2: (
        "ALTER TABLE {page} ADD COLUMN retries TEXT",
        "ALTER TABLE {attempt} ADD COLUMN slurm_state TEXT",
        "ALTER TABLE {attempt} ADD COLUMN n_handed INTEGER NOT NULL DEFAULT 0",
        'ALTER TABLE {attempt} ADD COLUMN "group" INTEGER',
        "ALTER TABLE {attempt} ADD COLUMN n_found INTEGER NOT NULL DEFAULT 0",
    ),
}

_ABSTRACT = {BaseModel, RowWithoutResult, PipelineOutputModel}


def init_database(modules: tuple[str, ...] = (), grant: tuple[str, ...] = ()) -> list[str]:
    """Make all missing tables, those of the named modules too; the names of the new ones.

    Parameters
    ----------
    modules : whose tables are made too.
    grant : roles that are to use the tables, as ``ROLE:plans`` (see grants.py).

    Can be run again: tables that exist are completed (indexes, triggers) and kept.

    Raises
    ------
    UsageError
        If a module cannot be imported, or there is no such role.
    DatabaseError
        If the tables were made by a later astra.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UsageError(f"the module {name!r} cannot be imported: {error}") from error
    wanted = parse_grants(grant)
    with connection(), database.atomic(), dialect().lock("initdb"):
        check_grants(wanted)
        if schema := Schema._meta.schema:
            dialect().create_schema(schema)
        version = _version()
        if version is not None and version > VERSION:
            raise _mismatch(version)
        new = []
        models = tables()
        for model in models:
            _check_names(model)
            if not model.table_exists():
                new.append(model._meta.table_name)
            model.create_table()
        if version is None:
            Schema.create(version=VERSION)
        else:
            names = {m._meta.table_name: dialect().table(m) for m in ORCHESTRATION}
            for step in range(version + 1, VERSION + 1):
                for statement in _STEPS[step]:
                    database.execute_sql(statement.format(**names))
            Schema.update(version=VERSION).execute()
        give(wanted, models)
        return new


def _check_names(model: Any) -> None:
    """Refuse names that peewee would not quote as they are, or PostgreSQL would cut."""
    for name in (model._meta.table_name, *model._meta.columns):
        dialect().quote(name)
        if len(name.encode()) > 63:
            raise DatabaseError(f"{name!r}, of the model {model.__name__}, exceeds 63 bytes")


def tables() -> list[Any]:
    """Every table, each after those that it refers to."""
    found = [*ORCHESTRATION, *(getattr(science, name) for name in science.__all__)]
    found += every_subclass(BaseModel)
    concrete = [m for m in dict.fromkeys(found) if _is_table(m)]
    return peewee.sort_models(concrete)


def _is_table(model: Any) -> bool:
    return (
        isinstance(model, type)
        and issubclass(model, BaseModel)
        and model not in _ABSTRACT
        and not getattr(model._meta, "abstract", False)
    )


def check_version() -> None:
    """Refuse to work on tables that are not this astra's.

    Raises
    ------
    DatabaseError
        If the tables are missing, older or newer; it says what to type.
    """
    version = None
    if not _is_missing_file():  # to look must not make one
        with connection():
            version = _version()
    if version is None:
        raise DatabaseError(
            f"the database {hide_password(url())} has no tables of astra; make them: astra initdb"
        )
    if version != VERSION:
        raise _mismatch(version)


def _is_missing_file() -> bool:
    path = getattr(dialect(), "path", ":memory:")
    return path != ":memory:" and not Path(path).exists()


def _version() -> int | None:
    if not Schema.table_exists():
        return None
    return Schema.select(peewee.fn.max(Schema.version)).scalar()


def _mismatch(version: int) -> DatabaseError:
    what = "upgrade astra" if version > VERSION else "bring them up to date: astra initdb"
    return DatabaseError(
        f"the tables of {hide_password(url())} are of version {version}, this astra works with "
        f"{VERSION}; {what}"
    )
