"""The provenance of a result: the task's arguments, the files that they name, and its code."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from os import PathLike
from pathlib import Path
from uuid import UUID

from peewee import Model

from astra.errors import BrokenElement, TaskError
from astra.models.keys import table_name
from astra.models.plans import MadeBy, Plan
from astra.tasks.arguments import json_value
from astra.tasks.declared import KEYWORDS, Declared, bind_call, declared_by
from astra.tasks.signature import rows_parameter, source_file, task_name
from astra.version import CURRENT


def arguments_of(
    function: Callable[..., object], values: Mapping[str, object]
) -> dict[str, object]:
    """Return all arguments of a call except its rows, including defaults."""
    _, bound = bind_call(function, ((),), values)
    return bound_arguments(function, bound)


def bound_arguments(function: object, bound: inspect.BoundArguments) -> dict[str, object]:
    """Return what :func:`arguments_of` does, from arguments that are bound already."""
    bound.apply_defaults()
    left_out = {rows_parameter(declared_by(function).function).name, *KEYWORDS}
    return {name: value for name, value in bound.arguments.items() if name not in left_out}


def provenance_of(
    function: Callable[..., object], arguments: Mapping[str, object], output: type[Model] | None
) -> dict[str, object]:
    """Return the columns of a :class:`MadeBy` for a call with all these arguments.

    Raises
    ------
    TaskError
        If a file that an argument names cannot be read.
    """
    declared, files = declared_by(function), _files(function, arguments)
    stored = _as_json(arguments)
    columns = {
        "task": task_name(function),
        "output_table": None if output is None else table_name(output),
        "digest": _digest(declared, arguments, files),
        "arguments": stored,
        "arguments_digest": digest_of(stored),
        "files": json.dumps(files),
        "revision": None if declared.revision is None else str(declared.revision),
        "commit": code_version(function),
        "v_astra": CURRENT.number,
    }
    return {**columns, "fingerprint": digest_of(_as_json(columns))}


def _files(
    function: Callable[..., object], arguments: Mapping[str, object]
) -> dict[str, dict[str, str]]:
    """Return the digests of the files of a call, by argument and path."""
    declared = declared_by(function)
    return {name: _digests(declared, name, arguments.get(name)) for name in declared.files}


def _digest(
    declared: Declared, arguments: Mapping[str, object], files: Mapping[str, Mapping[str, str]]
) -> str:
    """Return the digest of all that changes results: arguments, contents of files, revision."""
    # A file counts by its contents: it may be renamed.
    contents = {name: sorted(digests.values()) for name, digests in files.items()}
    others = {name: v for name, v in arguments.items() if not contents.get(name)}
    return digest_of(_as_json([others, contents, declared.revision]))


def fingerprint(provenance: MadeBy) -> str:
    """Return the first part of the fingerprint that the current columns of a row give."""
    names = (
        "task", "output_table", "digest", "arguments", "arguments_digest", "files", "revision",
        "commit", "v_astra",
    )  # fmt: skip
    return digest_of(_as_json({name: getattr(provenance, name) for name in names}))


def store_provenance(provenance: Mapping[str, object]) -> int:
    """Return the key of the row with these columns, which is inserted if there is none yet."""
    query = MadeBy.select(MadeBy.pk).where(MadeBy.fingerprint == provenance["fingerprint"])
    pk = query.scalar()
    if pk is None:
        MadeBy.insert(provenance).on_conflict_ignore().execute()
        if (pk := query.scalar()) is None:  # another conflict, which has to be raised
            pk = MadeBy.insert(provenance).execute()
    return int(pk)


def store_provenance_of_plan(provenance: Mapping[str, object], plan: Plan) -> int:
    """Return the key of the row with these columns that is of a plan."""
    own = {"plan_pk": plan.pk, "fingerprint": f"{provenance['fingerprint']}-{plan.token}"}
    return store_provenance({**provenance, **own})


def current_provenance(
    plan: Plan, function: Callable[..., object], values: Mapping[str, object], output: type[Model]
) -> int | None:
    """Return the key of the provenance of what a plan's task computes now.

    It is that of the plan, unless the revision of the task or the default of an argument has been
    changed since the plan was made.
    """
    planned = MadeBy.get_or_none(MadeBy.pk == plan.made_by)
    arguments = arguments_of(function, values)
    digest = _digest(declared_by(function), arguments, _files(function, arguments))
    if planned is None or planned.digest == digest:
        return plan.made_by
    return store_provenance_of_plan(provenance_of(function, arguments, output), plan)


def check_files(
    function: Callable[..., object],
    values: Mapping[str, object],
    planned: Mapping[str, Mapping[str, str]],
    plan: int,
) -> None:
    """Refuse to continue with a file that has changed since the plan was made.

    Parameters
    ----------
    planned : the digests when the plan was made, by argument and path.

    Raises
    ------
    BrokenElement
        If a file has changed; the message names it.
    """
    declared = declared_by(function)
    arguments = arguments_of(function, values)
    for name in declared.files:
        try:
            digests = _digests(declared, name, arguments.get(name))
        except TaskError as error:
            raise BrokenElement(f"{error}; put it back, then astra resume {plan}") from None
        for path, digest in digests.items():
            if (old := planned.get(name, {}).get(path)) != digest:
                raise BrokenElement(
                    f"{name}: the file {path} has changed since plan {plan} was made (SHA-256 "
                    f"{str(old)[:12]} then, {digest[:12]} now), and its results would differ: put "
                    f"the file back, then astra resume {plan}; or astra cancel {plan}, and plan "
                    "again"
                )


def _digests(declared: Declared, name: str, value: object) -> dict[str, str]:
    """Return the digests of the files that an argument names, by their paths."""
    return {str(path): digest_of_file(name, path) for path in _paths(declared, name, value)}


def _paths(declared: Declared, name: str, value: object) -> Iterator[Path]:
    find = declared.files[name]
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _paths(declared, name, item)
    elif find is not None:
        yield from _path(name, find(value))
    else:
        yield from _path(name, value)


def _path(name: str, value: object) -> Iterator[Path]:
    if isinstance(value, str | PathLike):
        yield Path(value)
    elif value is not None:
        raise TaskError(f"{name}={value!r}: give the path of a file, or None")


def digest_of_file(name: str, path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder.

    Raises
    ------
    TaskError
        If it cannot be read.
    """
    try:
        path = path.expanduser()
        if not path.is_dir():
            return _read_digest(path)
        parts = [p for p in sorted(path.rglob("*")) if p.is_file()]
        return digest_of(json.dumps([[str(p.relative_to(path)), _read_digest(p)] for p in parts]))
    except FileNotFoundError:
        raise TaskError(f"{name}: the file {path} does not exist") from None
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskError(f"{name}: the file {path} cannot be read: {error}") from None


def _read_digest(path: Path) -> str:
    about = path.stat()
    return _digest_at(path.absolute(), about.st_mtime_ns, about.st_size, about.st_ino)


@lru_cache(maxsize=1024)
def _digest_at(path: Path, *about: int) -> str:
    """Return the digest of a file, which is read again only when the file has changed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _as_json(value: object) -> str:
    try:
        return json.dumps(json_value(value), sort_keys=True, default=_placeholder)
    except ValueError as error:  # a number of too many digits
        raise TaskError(f"an argument cannot be stored with its results: {error}") from None


#: Types of values that their texts tell apart.
_WITH_TEXT = (date, time, timedelta, Decimal, UUID, Enum, complex)


def _placeholder(value: object) -> object:
    """Return what replaces a value that JSON cannot hold."""
    if isinstance(value, _WITH_TEXT):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"<{getattr(value, '__module__', type(value).__module__)}.{name}>"


def code_version(function: Callable[..., object]) -> str | None:
    """Return the commit of a task's code, with "+" where files were changed since."""
    return _commit(source_file(function).parent)


@lru_cache(maxsize=64)  # imported code does not change
def _commit(folder: Path) -> str | None:
    import subprocess  # here, as elements do not ask git

    def git(*arguments: str) -> str | None:
        try:
            finished = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                capture_output=True, text=True, timeout=10, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return finished.stdout.strip() if finished.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    if not head:
        return None
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no", ".") else "")
