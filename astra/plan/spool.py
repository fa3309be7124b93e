"""The spool: files of results that an element could not store before it had to end.

A file holds what one attempt yielded and the database did not take. It is stored before anything
is computed again: by ``astra recover``, by ``resume``, and by the next attempt at the page. It is
no state: without it, its rows are computed again and nothing else changes.

The first line is a header with the SHA-256 of the rest; then each line is one row, in JSON.
"""

import base64
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import peewee
from peewee import Model

from astra.config.run_folder import check_folder, spool_files, spool_folder, write_whole
from astra.database.connection import database, dialect, retrying, writing
from astra.errors import AstraError, Superseded
from astra.models.importing import load
from astra.models.keys import all_rows, key_of, moment_of
from astra.models.pipeline import OutputModel, link_of
from astra.models.plans import Attempt, Page, Plan
from astra.plan.lookup import find_modules
from astra.results.checkpoint import write
from astra.results.claim import Claim, claim_of
from astra.results.rows import Checkpoint, Handed, Refusal, Yielded, target_of
from astra.states import AttemptState, Outcome

log = logging.getLogger(__name__)


_FORMAT = "astra spool 1"


class BadSpool(AstraError):
    """A spool file that is not whole, or not ours."""


@dataclass(frozen=True)
class Recovered:
    """What became of the spool files of a plan."""

    plan: int
    files: int  # that were stored and removed
    rows: int  # that were stored from them
    passed_over: int  # rows that have ended since, or whose input was modified
    set_aside: tuple[str, ...] = ()  # files that a later attempt overtook, or that are damaged


def save(
    plan: Plan, claim: Claim, checkpoint: Checkpoint, many: bool = False, groups: bool = False
) -> Path | None:
    """Write what was not stored to a file that nobody else can read; None if there is nothing.

    `many` and `groups` say what the results of a row may be, as in a Target.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    lines = list(_lines(checkpoint))
    if not lines:
        return None
    body = "".join(f"{line}\n" for line in lines).encode()
    header = {
        "format": _FORMAT,
        "plan": plan.token,
        "page": claim.page.number,
        "attempt": claim.attempt.token,
        "rows": len(lines),
        "many": many,
        "groups": groups,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    place = spool_folder(plan.folder)
    check_folder(place)
    path = place / f"page-{claim.page.number}-attempt-{claim.attempt.pk}.spool"
    write_whole(path, json.dumps(header).encode() + b"\n" + body)
    return path


def _lines(checkpoint: Checkpoint) -> Iterator[str]:
    for yielded in checkpoint.results:
        # A result that was yielded for no row that was handed over is known by its key alone.
        if yielded.handed is None or yielded.handed.key is None:
            continue
        try:
            yield json.dumps(
                {
                    "result": {k: _plain(v) for k, v in yielded.result.__data__.items()},
                    **_handed(yielded.handed),
                }
            )
        except (TypeError, ValueError, AttributeError) as error:
            log.warning("row %s is not written to the spool file: %s", yielded.handed.key, error)
    for failure in checkpoint.failures:
        if failure.key is not None:
            values = {**asdict(failure), "modified": _plain(failure.modified), "bears": None}
            yield json.dumps({"failure": values, "key": failure.key})
    for handed in checkpoint.no_results:
        if handed.key is not None:
            yield json.dumps({"no_result": True, **_handed(handed)})


def _handed(handed: Handed) -> dict[str, object]:
    return {
        "key": handed.key,
        "modified": _plain(handed.modified),
        "read": _plain(handed.read),
    }


def _plain(value: object) -> object:
    """A value as JSON has it; what JSON has no form for stands under its kind."""
    import numpy as np  # here, as few commands touch an array

    if value is None or isinstance(value, str | bool | int | float):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    if isinstance(value, datetime):
        return {"datetime": value.isoformat()}
    if isinstance(value, date):
        return {"date": value.isoformat()}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": base64.b64encode(bytes(value)).decode()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {str(k): _plain(v) for k, v in value.items()}}
    if isinstance(value, UUID | Decimal):
        return {type(value).__name__.lower(): str(value)}
    if hasattr(value, "pk"):  # a related row, which is its key
        return _plain(value.pk)
    raise TypeError(f"{type(value).__name__} cannot be written to a spool file")


_READERS: dict[str, Callable[[Any], object]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "bytes": base64.b64decode,
    "uuid": UUID,
    "decimal": Decimal,
    "dict": lambda found: {k: _value(v) for k, v in found.items()},
}


def _value(plain: object) -> Any:
    if isinstance(plain, list):
        return [_value(item) for item in plain]
    if isinstance(plain, dict):
        ((kind, content),) = plain.items()
        return _READERS[kind](content)
    return plain


#: What the first line of a spool file says beside its format and checksum.
_HEADER = frozenset(["attempt", "page", "plan", "rows"])


def load_file(path: Path, output: type[OutputModel]) -> tuple[dict[str, Any], Checkpoint]:
    """The header of a spool file, and what it holds; its results are of the model `output`.

    Raises
    ------
    BadSpool
        If it is not a whole file of this user's.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid():
                raise BadSpool(f"{path} does not belong to you: it is not read")
            first, _, body = file.read().partition(b"\n")
    except OSError as error:
        raise BadSpool(f"{path} cannot be read: {error.strerror}") from error
    try:
        header = json.loads(first)
        if header["format"] != _FORMAT:
            raise BadSpool(f"{path} is of the format {header['format']!r}, not {_FORMAT!r}")
        if hashlib.sha256(body).hexdigest() != header["sha256"]:
            raise BadSpool(f"{path} is damaged: its checksum does not match")
        if lacking := _HEADER - header.keys():
            raise BadSpool(f"{path} is damaged: it lacks {', '.join(sorted(lacking))}")
        return header, _checkpoint([json.loads(line) for line in body.splitlines()], output)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadSpool(f"{path} is damaged: {error}") from error


def _checkpoint(rows: list[dict[str, Any]], output: type[OutputModel]) -> Checkpoint:
    found = Checkpoint()
    by_key: dict[object, Handed] = {}  # of one row there may be several results
    for row in rows:
        if "failure" in row:
            values = {**row["failure"], "modified": _value(row["failure"]["modified"])}
            found.failures.append(Refusal(**values))
            continue
        handed = Handed(row["key"], None, _value(row["modified"]), _value(row["read"]))
        handed = by_key.setdefault(handed.key, handed)
        if "no_result" in row:
            found.no_results.append(handed)
            continue
        result = output(**{name: _value(plain) for name, plain in row["result"].items()})
        found.results.append(Yielded(result, handed))
    return found


def recover(plan: Plan, page: int | None = None) -> Recovered:
    """Store what the elements of a plan spooled, where it is still valid.

    Valid is what a page's last attempt yielded, for rows that have not ended since and whose
    input is what it was. A file that a later attempt overtook, or that is damaged, is set aside
    under another name; its rows are computed again.
    """
    n_files = n_rows = n_passed = 0
    aside: list[str] = []
    if not (paths := spool_files(plan.folder, page)):
        return Recovered(plan.pk, 0, 0, 0)
    find_modules(plan)
    output = load(plan.output_model)
    for path in paths:
        try:
            header, checkpoint = load_file(path, output)
            if header["plan"] != plan.token:
                raise BadSpool(f"{path} is of another plan (token {header['plan']})")
            stored = _store(plan, header, checkpoint, output)
        except (BadSpool, Superseded) as error:
            if path.exists():
                log.warning("%s; it is renamed and not used", error)
                aside += _set_aside(path)
            continue
        path.unlink(missing_ok=True)  # somebody else may have stored it at the same time
        n_files, n_rows = n_files + 1, n_rows + stored
        n_passed += header["rows"] - stored
    return Recovered(plan.pk, n_files, n_rows, n_passed, tuple(aside))


def _set_aside(path: Path) -> list[str]:
    kept = path.with_suffix(".aside")
    try:
        os.replace(path, kept)
    except FileNotFoundError:  # somebody else did, at the same time
        return []
    return [str(kept)]


def _store(
    plan: Plan, header: dict[str, Any], checkpoint: Checkpoint, output: type[OutputModel]
) -> int:
    """Store one file's rows as its attempt would have; their number."""
    model = load(plan.input_model)
    link = link_of(output, model)
    for yielded in checkpoint.results if not link.is_whole else ():
        if yielded.handed is not None:
            if yielded.handed.bears is None:
                yielded.handed.bears = link.of_result(yielded.result)
    query = Page.select().where((Page.plan == plan.pk) & (Page.number == header["page"]))
    if dialect().name == "postgresql":
        query = query.for_update()  # somebody else may be storing the same file

    def work() -> int:
        with writing():
            page = query.clone().first()
            attempt = Attempt.get_or_none(Attempt.token == header["attempt"])
            if page is None or attempt is None or page.attempt_pk != attempt.pk:
                raise Superseded(
                    f"page {header['page']} of plan {plan.pk} was taken over by a later attempt: "
                    f"what attempt {header['attempt']} spooled is no longer valid"
                )
            claim = claim_of(page, attempt)
            valid = _valid(model, claim, checkpoint)
            kinds = header.get("many", False), header.get("groups", False)
            write(valid, target_of(plan, model, output, page.number, *kinds), claim)
            Attempt.update(
                state=AttemptState.INTERRUPTED.value,
                message="what the database did not take at its end was spooled and stored later",
            ).where(
                (Attempt.pk == attempt.pk) & (Attempt.state == AttemptState.RUNNING.value)
            ).execute()
            return len(valid)

    return retrying(work)


def _valid(model: type[Model], claim: Claim, checkpoint: Checkpoint) -> Checkpoint:
    """Those rows that have not ended since, and whose input is what it was."""
    key = key_of(model)

    def is_open(k: object) -> bool:
        place = claim.positions.get(k) if k is not None else None
        return place is not None and claim.outcomes[place] == Outcome.PENDING

    keys = [y.handed.key for y in checkpoint.results if y.handed]
    keys += [f.key for f in checkpoint.failures] + [h.key for h in checkpoint.no_results]
    moment = moment_of(model)
    query = key.narrowed(all_rows(model), [k for k in keys if k is not None and is_open(k)])
    query = query.select(key.given, peewee.Value(None) if moment is None else moment)
    python = OutputModel.input_modified.python_value
    modified = {k: python(at) for k, at in database.execute(query).fetchall()}

    def stands(k: object, at: object) -> bool:
        return is_open(k) and k in modified and (at is None or modified[k] == at)

    return Checkpoint(
        [y for y in checkpoint.results if y.handed and stands(y.handed.key, y.handed.modified)],
        [f for f in checkpoint.failures if stands(f.key, f.modified)],
        [h for h in checkpoint.no_results if stands(h.key, h.modified)],
    )
