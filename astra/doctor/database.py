"""Check the database: connection, settings, tables, and the rights of the role."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from peewee import Model, fn

from astra.config import secrets
from astra.config import settings as config
from astra.database.connection import connection, dialect, url
from astra.database.inspection import Server, indexes, lacking, server, stored_name
from astra.doctor.finding import Finding, failed, findings, ok, warning
from astra.errors import DatabaseError, TaskError, Untrusted
from astra.models.archive import new_place
from astra.models.base import BaseModel
from astra.models.importing import load
from astra.models.plans import Plan
from astra.models.roles import KINDS, privileges_of
from astra.models.schema import own_tables
from astra.models.table_checks import check_guards, check_tables, check_version, command_for
from astra.plan.lookup import find_modules

_PART = "database"

#: Fewer free connections than this are soon none.
_LITTLE_ROOM = 10


def database() -> Iterator[Finding]:
    """Check the database; if it cannot be reached, that is the only finding."""
    if dialect().name == "sqlite":
        yield from _file(Path(getattr(dialect(), "path", "")))
    with connection():
        facts = server()
        yield ok(_PART, f"{secrets.hide_password(url())}: {facts.name} answers")
        yield from _settings(facts)
        yield from findings(_PART, _tables)
        existing = [model for model in own_tables() if dialect().columns(model)]
        yield from findings(_PART, lambda: _rights(facts.role, existing))
        if existing:
            yield from findings(_PART, _archive)


def _archive() -> None:
    """Check that this is no copy. Its place is recorded by who writes: until then a backup that was
    recovered beside its original can still be declared a copy."""
    new_place()


def _file(path: Path) -> Iterator[Finding]:
    """Check an SQLite file and its folder, which must be writable for the log."""
    if not path.exists():
        raise DatabaseError(f"there is no file {path}; create it: astra initdb")
    for place in (path, path.parent):
        if not os.access(place, os.W_OK):
            problem = f"{place} cannot be written: you can read, and store nothing"
            yield warning(_PART, problem, f"have its owner allow it: chmod u+w {place}")


def _settings(facts: Server) -> Iterator[Finding]:
    if facts.least:
        yield failed(_PART, f"{facts.name} is too old", f"use {facts.least} or later")
    if dialect().name == "sqlite":
        if facts.settings["journal_mode"] != "wal":
            message = f"journal_mode is {facts.settings['journal_mode']}, so that readers block"
            yield warning(
                _PART, message, "keep the file on a local disk, in a folder that you may write to"
            )
        yield ok(_PART, "a SQLite file: run with --local; Slurm's elements need PostgreSQL")
        return
    free = (facts.max_connections or 0) - (facts.used or 0)
    message = f"{facts.used} of {facts.max_connections} connections (max_connections) are in use"
    if free < _LITTLE_ROOM:
        remedy = "have the administrator raise max_connections, or the limit of the role"
        yield warning(_PART, message, remedy)
    else:
        yield ok(_PART, message)
    encoding = facts.settings["server_encoding"]
    if encoding != "UTF8":
        remedy = "createdb -E UTF8 -T template0 NAME, and name it in [database] url"
        yield warning(
            _PART, f"its encoding is {encoding}: other characters cannot be stored", remedy
        )
    else:
        yield ok(_PART, f"encoding {encoding}")
    if facts.is_standby:
        remedy = "name the primary in [database] url (target_session_attrs=read-write)"
        yield failed(_PART, "the server is a standby, which stores nothing", remedy)
    elif facts.settings["transaction_read_only"] == "on":
        off = "default_transaction_read_only = off"  # also where the database sets it
        remedy = f"BEGIN READ WRITE; ALTER ROLE {facts.role} SET {off}; COMMIT"
        yield failed(_PART, "transactions of this role are read-only", remedy)
    for name in ("fsync", "full_page_writes"):
        if facts.settings[name] != "on":
            message = f"{name} is off: a crash of the server may lose what was stored"
            yield warning(_PART, message, f"ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf()")
    limit_s = int(facts.settings["statement_timeout"]) / 1000
    min_s = config.current().database.answer_timeout_s
    if 0 < limit_s < min_s:
        message = f"statement_timeout is {limit_s:g} s, less than [database] answer_timeout_s"
        yield warning(_PART, message, f"ALTER ROLE {facts.role} SET statement_timeout = 0")


def _tables() -> Iterator[Finding]:
    """Check the tables of astra and of planned tasks: columns, indexes, triggers."""
    check_version()
    models = own_tables()
    last_of_each_task = Plan.select(fn.MAX(Plan.pk)).group_by(Plan.task, Plan.input_model)
    for plan in Plan.select().where(Plan.pk.in_(last_of_each_task)):
        try:
            find_modules(plan)
            for path in (plan.input_model, plan.output_model):
                models.append(load(path))
        except Untrusted:
            problem = f"{plan.task}, of plan {plan.pk}, is not checked: {plan.role!r} planned it"
            remedy = f"review its code in {plan.cwd}, then name the folder in [plan] trusted_roots"
            yield warning(_PART, problem, remedy)
        except TaskError as error:
            problem = f"{plan.task}, of plan {plan.pk}: {error}"
            remedy = "run this command in the folder of the module, or install the module"
            yield warning(_PART, problem, remedy)
    wrong = [finding for model in dict.fromkeys(models) for finding in table_findings(_PART, model)]
    yield from wrong
    if not wrong:
        yield ok(_PART, f"{len(dict.fromkeys(models))} tables with their indexes and triggers")


def table_findings(part: str, model: type[Model]) -> Iterator[Finding]:
    """Check whether a table exists, and has its columns, indexes and triggers."""
    before = list(findings(part, partial(check_tables, model)))
    before += [] if before else findings(part, partial(check_guards, model))
    yield from before
    if before or not issubclass(model, BaseModel):
        return
    existing = indexes(model)
    for index in model._meta.fields_to_index():
        if stored_name(index._name) not in existing:
            problem = f"the table {model._meta.table_name!r} lacks its index {index._name}"
            yield failed(part, problem, command_for(model))


def _rights(role: str | None, models: list[type[BaseModel]]) -> Iterator[Finding]:
    """Check for which kinds of work the role has the required privileges."""
    may = []
    for kind, purpose in KINDS.items():
        required = [(model, p) for model in models for p in privileges_of(kind, model)]
        missing = lacking(required)
        if not missing:
            may.append(kind)
            continue
        model, privilege = missing[0]
        name = model._meta.table_name
        message = (
            f"the role {role!r} lacks the right {kind} ({purpose}): it may not "
            f"{privilege.split(' ')[0]} on {name}"
        )
        find = failed if kind == "reads" else warning
        yield find(_PART, message, f"have the tables' owner run astra initdb --grant {role}:{kind}")
    if role is not None and may:
        yield ok(_PART, f"the role {role!r} has what it needs for: {', '.join(may)}")
