"""Write a first module for a user's own tasks: models of existing tables, and a task on each."""

import json
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path

import peewee
from playhouse.reflection import Column, Introspector, UnknownField

from astra.config.secrets import has_password, hide_password
from astra.config.settings import current
from astra.database.connection import bind, connection, database, dialect
from astra.errors import UsageError, nearest
from astra.models.pipeline import OutputModel
from astra.models.table_checks import FIELDS, is_missing_file

_CONFIGURATION = """\
# astra's configuration of this folder; `astra config` shows every value.

[database]
url = {url}
"""

_HEAD = '''\
"""Tables, and tasks on their rows. `astra initdb {module}` creates the tables of results."""

from collections.abc import Iterable

import peewee
from peewee import {names}

from astra import task
from astra.models import OutputModel, result_of
'''

_TASK = '''

class {name}Result(OutputModel):
    """The result for one row; add your own columns."""

    {pointer} = result_of({name})
    value = FloatField(null=True)


@task
def measure_{pointer}(rows: Iterable[{name}]) -> Iterable[{name}Result]:
    """Compute a result for each row."""
    for row in rows:
        yield {name}Result.from_row(row, value=1.0)
'''

_SPECTRA = '''\
"""Tasks on spectra. `astra initdb {module}` creates the tables of results."""

from collections.abc import Iterable

from peewee import FloatField

from astra import task
from astra.models import BossVisitSpectrum, PipelineOutputModel


class Brightness(PipelineOutputModel):
    """The result for one spectrum; add your own columns."""

    value = FloatField(null=True)


@task
def brightness(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Brightness]:
    """Compute a result for each spectrum."""
    for spectrum in spectra:
        yield Brightness.from_spectrum(spectrum, value=spectrum.snr)
'''


#: The fields of peewee that hold a key of PostgreSQL's types; others get a field of their own.
_KEY_FIELDS = {
    **FIELDS, "bool": "BooleanField", "time": "TimeField", "bytea": "BlobField",
}  # fmt: skip

_OWN_FIELD = '''

class {name}({base}):
    """Of a type that peewee has no field for."""

    field_type = {kind!r}
'''

#: The fields for types that peewee does not know, by SQLite's rules of affinity.
_AFFINITIES: dict[str, type[peewee.Field]] = {
    "INT": peewee.BigIntegerField, "CHAR": peewee.TextField, "CLOB": peewee.TextField,
    "TEXT": peewee.TextField, "BLOB": peewee.BlobField, "REAL": peewee.DoubleField,
    "FLOA": peewee.DoubleField, "DOUB": peewee.DoubleField, "NUMERIC": peewee.DecimalField,
}  # fmt: skip


def module_text(module: str, schema: str | None, tables: Sequence[str]) -> str:
    """Return the text of a module with models of existing tables, and a task on each.

    Without `tables`, it has a task on spectra.

    Raises
    ------
    UsageError
        If there is no such table.
    """
    if not tables:
        return _SPECTRA.format(module=module)
    parts: list[str] = []
    with connection():
        if schema and dialect().name == "sqlite":
            raise UsageError(f"--schema {schema}: SQLite has no schemas; leave it out")
        reflected = Introspector.from_database(database.bound(), schema=schema)
        views = {view.name for view in database.bound().get_views(schema)}
        existing = {*reflected.metadata.database.get_tables(schema), *views}
        for table in tables:
            if table not in existing:
                raise UsageError(_no_table(table, schema, existing))
            parts += _model(reflected, table, schema)
    text = "".join(dict.fromkeys(parts))
    used = set(re.findall(r"\b(?:[A-Z]\w*Field|CompositeKey)\b", text)) & vars(peewee).keys()
    return _HEAD.format(module=module, names=", ".join(sorted(used))) + text


def _no_table(table: str, schema: str | None, existing: Iterable[str]) -> str:
    """Describe that a schema has no such table, and where there is one."""
    place = f" in the schema {schema!r}" if schema else ""
    elsewhere = dialect().schemas_of_table(table.rpartition(".")[2])
    if elsewhere:
        words = shlex.join([table.rpartition(".")[2], "--schema", elsewhere[0]])
        hint = f"The schema {elsewhere[0]!r} has it: write {words}"
    else:
        hint = nearest(table, existing)
    return f"there is no table {table!r}{place}. {hint}"


def _model(tables: Introspector, table: str, schema: str | None) -> list[str]:
    """Return the texts of the fields and the model of a table, and of a task on its rows."""
    name = tables.make_model_name(table)
    columns = tables.metadata.get_columns(table, schema)
    primary, kinds = dialect().key_and_types(table, schema)
    own_fields = []
    lines = ["", "", f"class {name}(peewee.Model):"]
    taken = set(dir(peewee.Model))
    for column in columns.values():
        kind = kinds.get(column.name)
        column.primary_key = [column.name] == primary
        if column.name in primary:
            column.nullable = False
        own = None
        may_be_key = column.name in primary or not primary
        # peewee's field has ten digits, if the column does not say how many it has.
        is_exact = kind != "numeric" or bool(column.extra_parameters)
        if may_be_key and kind and (own := _own_field(kind, is_exact)):
            # As BIT, the results would have one bit.
            exact = {"char": '"char"', "bit": "VARBIT"}.get(kind, kind.upper())
            declared = kind if "." in kind else exact
            # What is not of the server itself, such as an enum, is a text to the driver.
            base = "TextField" if "." in kind else "peewee.Field"
            own_fields.append(_OWN_FIELD.format(name=own, base=base, kind=declared))
        column.name = _identifier(tables, column.name, taken)
        lines.append(f"    {_field(column, kind, own)}")
    keys = [columns[name].name for name in primary]
    lines += ["", "    class Meta:", f"        table_name = {table!r}"]
    if schema:
        lines.append(f"        schema = {schema!r}")
    if not keys:
        lines.append("        # Name the columns that identify a row, before a task can read it:")
        lines.append("        primary_key = False  # CompositeKey('first', 'second')")
        return [*own_fields, "\n".join(lines) + "\n"]
    if len(keys) > 1:
        names = ", ".join(repr(key) for key in keys)
        lines.append(f"        primary_key = CompositeKey({names})")
    lines.append("        # The column that says when a row was modified, if there is one:")
    lines.append("        # modified = 'updated_at'")
    pointer = _identifier(tables, table.lower(), set(dir(OutputModel)))
    task = _TASK.format(name=name, pointer=pointer)
    return [*own_fields, "\n".join(lines) + "\n" + task]


def _identifier(tables: Introspector, name: str, taken: set[str]) -> str:
    """Return a name that a module can use for a table or column, and add it to those taken."""
    if not name.isidentifier() or iskeyword(name):
        name = str(tables.make_column_name(name, snake_case=False))
    while name in taken:
        name += "_"
    taken.add(name)
    return name


#: Whole numbers of SQLite have up to 64 bits, whatever the name of their type.
_OF_64_BITS = {peewee.AutoField: peewee.BigAutoField, peewee.IntegerField: peewee.BigIntegerField}


def _own_field(kind: str, is_exact: bool) -> str | None:
    """Return the name of the field that a key of a type needs, if peewee has none for it."""
    words = re.findall(r"[^\W_]+", kind.rpartition(".")[2])
    return None if kind in _KEY_FIELDS and is_exact else f"Own{''.join(map(str.title, words))}Field"


def _field(column: Column, kind: str | None, own: str | None) -> str:
    """Return the line by which a model declares a column."""
    if own is not None:
        place = f"column_name={column.column_name!r}" if column.name != column.column_name else ""
        key = "primary_key=True" if column.primary_key else "null=True" if column.nullable else ""
        return f"{column.name} = {own}({', '.join(filter(None, (place, key)))})"
    if dialect().name == "sqlite":
        column.field_class = _OF_64_BITS.get(column.field_class, column.field_class)
    if issubclass(column.field_class, peewee.AutoField):
        auto = "BigAutoField" if "Big" in column.field_class.__name__ else "AutoField"
        return f"{column.name} = {auto}()"
    if kind == "bpchar":  # which peewee takes for a varchar
        column.field_class = peewee.FixedCharField
    if column.field_class is UnknownField and kind is not None:  # a domain, or another type
        known = _KEY_FIELDS.get(kind, "")
        column.field_class = getattr(peewee, known, peewee.BareField)
    elif column.field_class is UnknownField:
        affinity = str(column.raw_column_type).upper()
        column.field_class = next(
            (field for word, field in _AFFINITIES.items() if word in affinity), peewee.BareField
        )
    if not hasattr(peewee, column.field_class.__name__):  # as of JSON or an array
        column.field_class, column.extra_parameters = peewee.BareField, None
    column.default = None  # astra adds no row to the table
    text: str = column.get_field()
    return text


def start_here(
    tables: Sequence[str], url: str | None, schema: str | None, module: str
) -> list[Path]:
    """Write a configuration and a module of tasks into the current folder.

    Parameters
    ----------
    tables : the tables that get models; by default, all of the schema if `url` is given.
    url : of the database; by default, the configured one, or a new SQLite file.
    schema : the PostgreSQL schema that holds the tables.
    module : the name of the module.

    Raises
    ------
    UsageError
        If a file exists already, the URL holds a password, or there is no such table.
    """
    if not module.isidentifier() or iskeyword(module):
        raise UsageError(
            f"--module {module!r}: write the name of a Python module, of letters, digits and "
            "underscores, without .py, such as mytasks"
        )
    file, settings = Path(f"{module}.py"), Path("astra.toml")
    spec = find_spec(module)  # without an origin, it is only a folder, and the file precedes it
    if module in sys.modules or (spec and spec.origin and not file.exists()):
        raise UsageError(f"--module {module!r}: an installed module has this name; choose another")
    if url is not None and has_password(url):
        raise UsageError(
            "the URL holds a password, which astra init would write to astra.toml: put it into "
            "~/.pgpass, and leave it out"
        )
    for path in (file, *([settings] if url is not None else [])):
        if path.exists():
            raise UsageError(
                f"{path} already exists and was not overwritten: "
                + (
                    "leave --database out to keep it"
                    if path == settings
                    else "choose another --module"
                )
                + ", or remove it"
            )
    if url is not None:
        bind(url)
    if tables and is_missing_file():  # connecting would create it
        raise UsageError(
            f"the database {hide_password(current().database.url if url is None else url)} "
            "does not exist: name the one that holds the tables, with --database URL"
        )
    if url is not None and not tables and not is_missing_file():
        with connection():
            tables = sorted(database.bound().get_tables(schema))
    file.write_text(module_text(module, schema, tables))
    configured = url or current().database.url
    if settings.exists() or has_password(configured):
        return [file]
    text = json.dumps(configured, ensure_ascii=False)  # as a string in TOML is quoted, too
    settings.write_text(_CONFIGURATION.format(url=text))
    return [settings, file]
