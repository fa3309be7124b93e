"""The spool: files of results that an element could not store before it had to end.

A file holds the results of one attempt that the database did not accept. They are stored before
anything is computed again: by ``astra recover``, ``resume``, and the next attempt at the page. The
file is not part of the plan's state: without it, its rows are computed again.

The first line is a header with the SHA-256 of the rest; then each line is one row, in JSON.
"""

import base64
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from uuid import UUID

from peewee import Model

from astra.config import settings as config
from astra.config.run_folder import check_folder, spool_files, spool_folder, write_whole
from astra.database.connection import dialect, writing
from astra.errors import AstraError, BrokenElement, Superseded
from astra.fields import packed_array, unpacked_array
from astra.models.attempts import Attempt
from astra.models.importing import load
from astra.models.keys import RowKey, moments
from astra.models.pipeline import OutputModel, link_of
from astra.models.plans import Page, Plan
from astra.plan.lookup import find_modules
from astra.plan.pages import give_back
from astra.records import dataclass
from astra.results.claim import Claim, claim_of
from astra.results.rows import (
    Checkpoint,
    HandedRow,
    Refusal,
    Target,
    YieldedResult,
    target_of,
)
from astra.results.stopping import Stop, Tally
from astra.states import AttemptState, Outcome

log = logging.getLogger(__name__)


_FORMAT = "astra spool 1"


class BadSpool(AstraError):
    """A spool file that is damaged, or of another plan or user."""


@dataclass(frozen=True)
class Header:
    """The first line of a spool file, except for its format."""

    plan: str  # its token
    page: int
    attempt: str  # its token
    rows: int
    sha256: str  # of the rest of the file
    many: bool = False  # as in a Target
    groups: bool = False
    made_by: int | None = None


@dataclass(frozen=True)
class Recovered:
    """The result of storing the spool files of a plan.

    Examples
    --------
    >>> from astra.api import recover
    >>> recover(1).rows
    0
    """

    plan: int  #: number of the plan
    files: int  #: files that were stored and removed
    rows: int  #: results, failures and records of no result that were stored from them
    passed_over: int  #: results of rows that have ended since, or whose input was modified
    set_aside: tuple[str, ...] = ()  #: files of superseded attempts, and damaged files
    refused: int = 0  #: results that the database refused: their rows have failed
    kept: tuple[str, ...] = ()  #: files whose results the table refuses, whatever the row


def save(plan: Plan, claim: Claim, checkpoint: Checkpoint, target: Target) -> Path | None:
    """Write a checkpoint that was not stored to a file that only the user can read.

    Return its path, or None if no row of it can be written.

    Raises
    ------
    UsageError
        If the file cannot be written.
    """
    lines = list(_lines(checkpoint))
    if not lines:
        return None
    body = "".join(f"{line}\n" for line in lines).encode()
    number, digest = claim.page.number, hashlib.sha256(body).hexdigest()
    kinds = target.many, target.groups, target.made_by
    header = Header(plan.token, number, claim.attempt.token, len(lines), digest, *kinds)
    first = json.dumps({"format": _FORMAT, **asdict(header)})
    folder = spool_folder(plan.folder)
    check_folder(folder)
    path = folder / f"page-{number}-attempt-{claim.attempt.pk}.spool"
    write_whole(path, first.encode() + b"\n" + body)
    return path


def _lines(checkpoint: Checkpoint) -> Iterator[str]:
    results: dict[RowKey, list[str]] = {}
    unfit: set[RowKey] = set()  # rows with a result that cannot be written
    for yielded in checkpoint.results:
        # A result of a row that was not handed over could be found by its key only; a further one
        # of a row that has ended is refused.
        if yielded.handed.key is None or yielded.again:
            continue
        key = yielded.handed.key
        try:
            line = _line("result", yielded.result.__data__, yielded.handed)
            results.setdefault(key, []).append(line)
        except Exception as error:  # a value of the task's own may raise anything
            log.warning("row %s is not written to the spool file: %s", key, error)
            unfit.add(key)
    for key, lines in results.items():  # all results of a row, or none
        yield from lines if key not in unfit else ()
    for failure in checkpoint.failures:
        if failure.handed.key is not None:
            values = {name: value for name, value in vars(failure).items() if name != "handed"}
            yield _line("failure", values, failure.handed)
    for handed in checkpoint.no_results:
        if handed.key is not None:
            yield _line("no_result", {}, handed)


def _line(kind: str, values: Mapping[str, object], handed: HandedRow | None = None) -> str:
    row = {name: _plain(getattr(handed, name)) for name in ("key", "modified", "read") if handed}
    return json.dumps({kind: {name: _plain(value) for name, value in values.items()}, **row})


def _plain(value: object) -> object:
    """Convert a value to types of JSON; any other type becomes a mapping of its kind to a text."""
    import numpy as np  # here, as few commands touch an array

    if value is None or isinstance(value, str | bool | int | float):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.longdouble):  # Python has no such number: its item is itself
        return float(value)
    if isinstance(value, np.generic) and not isinstance(value, np.clongdouble):
        return _plain(value.item())
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            return _plain(value.tolist())
        return {"array": base64.b64encode(packed_array(value)).decode()}
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
        return {"uuid" if isinstance(value, UUID) else "decimal": str(value)}
    raise TypeError(f"{type(value).__name__} cannot be written to a spool file")


_READERS: dict[str, Callable[[str], object]] = {
    "array": lambda text: unpacked_array(base64.b64decode(text)),
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "bytes": base64.b64decode,
    "uuid": UUID,
    "decimal": Decimal,
}


def _values(plain: dict[str, object]) -> dict[str, object]:
    return {name: _value(value) for name, value in plain.items()}


def _value(plain: object) -> object:
    """Convert a value back that :func:`_plain` has returned."""
    if isinstance(plain, list):
        return [_value(item) for item in plain]
    if isinstance(plain, dict):
        ((kind, content),) = plain.items()
        return _values(content) if kind == "dict" else _READERS[kind](content)
    return plain


def load_file(path: Path, output: type[OutputModel]) -> tuple[Header, Checkpoint]:
    """Read a spool file, with results of the model `output`.

    Raises
    ------
    BadSpool
        If it is damaged, or belongs to another user.
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
        values = json.loads(first)
        if (form := values.pop("format")) != _FORMAT:
            raise BadSpool(f"{path} is of the format {form!r}, not {_FORMAT!r}")
        header = Header(**values)
        if hashlib.sha256(body).hexdigest() != header.sha256:
            raise BadSpool(f"{path} is damaged: its checksum does not match")
        return header, _checkpoint(body.splitlines(), output)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadSpool(f"{path} is damaged: {error}") from error


def _checkpoint(lines: list[bytes], output: type[OutputModel]) -> Checkpoint:
    checkpoint = Checkpoint()
    by_key: dict[object, HandedRow] = {}  # a row may have several results
    for row in map(json.loads, lines):
        key, modified, read = row["key"], _value(row["modified"]), _value(row["read"])
        handed = HandedRow(key, None, modified, read)  # type: ignore[arg-type]
        handed = by_key.setdefault(key, handed)
        if "failure" in row:
            refusal = Refusal(handed, **_values(row["failure"]))  # type: ignore[arg-type]
            checkpoint.failures.append(refusal)
        elif "no_result" in row:
            checkpoint.no_results.append(handed)
        else:
            result = output(**_values(row["result"]))
            checkpoint.results.append(YieldedResult(result, handed))
    return checkpoint


def recover(plan: Plan, page: int | None = None, stop: Stop | None = None) -> Recovered:
    """Store the spooled results of a plan, as far as they are still valid.

    Results are valid if they are of the page's last attempt, and of rows that have not ended since
    and were not modified. A file of a superseded attempt, or a damaged one, is renamed and its rows
    are computed again. If the database refuses so many results that its table, and none of the
    rows, is to blame, the file is kept until the next attempt at its page. After a request to
    `stop`, an unavailable database is not waited for.
    """
    n_files = n_rows = n_passed = n_refused = 0
    aside: list[str] = []
    kept: list[str] = []
    if not (paths := spool_files(plan.folder, page)):
        return Recovered(plan.pk, 0, 0, 0)
    find_modules(plan)
    output = load(plan.output_model)
    for path in paths:
        try:
            header, checkpoint = load_file(path, output)
            if header.plan != plan.token:
                raise BadSpool(f"{path} is of another plan (token {header.plan})")
            valid = _store(plan, header, checkpoint, output, stop or Stop())
        except (BadSpool, Superseded) as error:
            if path.exists():
                log.warning("%s; it is renamed and not used", error)
                with _unless_gone(path):
                    aside.append(str(path.replace(path.with_suffix(".aside"))))
            continue
        except BrokenElement as error:
            log.warning("%s is kept: %s", path, error)
            kept.append(str(path))
            continue
        with _unless_gone(path):
            path.unlink()
        n_files, n_refused = n_files + 1, n_refused + len(valid.refused)
        n_rows += len(valid) - len(valid.refused)
        n_passed += header.rows - len(valid)
    return Recovered(plan.pk, n_files, n_rows, n_passed, tuple(aside), n_refused, tuple(kept))


@contextmanager
def _unless_gone(path: Path) -> Iterator[None]:
    """Continue if a file cannot be renamed or removed: another process did it, or nobody may."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning("%s cannot be renamed or removed: %s", path, error.strerror)


def _store(
    plan: Plan,
    header: Header,
    checkpoint: Checkpoint,
    output: type[OutputModel],
    stop: Stop,
) -> Checkpoint:
    """Store the rows of a file as its attempt would have; return those that were still valid."""
    model = load(plan.input_model)
    link = link_of(output, model)
    for yielded in checkpoint.results:
        if (handed := yielded.handed).link_value is None:
            handed.link_value = handed.key if link.is_whole else link.of_result(yielded.result)
    query = Page.select().where((Page.plan == plan.pk) & (Page.number == header.page))
    if dialect().name == "postgresql":
        query = query.for_update()  # another process may be storing the same file

    def work() -> Checkpoint:
        with writing():
            page = query.clone().first()
            attempt = Attempt.get_or_none(Attempt.token == header.attempt)
            if page is None or attempt is None or page.attempt_pk != attempt.pk:
                raise Superseded(
                    f"page {header.page} of plan {plan.pk} was taken over by a later attempt: "
                    f"the spool file of attempt {header.attempt} is no longer valid"
                )
            claim = claim_of(page, attempt)
            valid = _valid(model, claim, checkpoint)
            kinds = header.many, header.groups, header.made_by
            target = target_of(plan, model, output, page.number, *kinds)
            from astra.results.checkpoint import write  # here, as there is usually nothing to store

            write(valid, target, claim, partial(_judge, plan.task, valid))
            interrupted = Attempt.update(
                state=AttemptState.INTERRUPTED.value,
                message="the results that the database did not accept at its end were spooled, "
                "and stored later",
            ).where((Attempt.pk == attempt.pk) & (Attempt.state == AttemptState.RUNNING.value))
            if interrupted.execute():
                give_back(page)  # no watcher takes over what an interrupted attempt holds
            return valid

    return stop.retrying(work)


def _judge(task: str, spooled: Checkpoint, refused: list[Refusal]) -> None:
    """Raise the error if the rows did not cause that their results are refused."""
    element = config.current().element
    rows = {yielded.handed.key for yielded in spooled.results}
    tally = Tally(element.max_failures, element.max_failures_after, n_ended=len(rows))
    tally.check(task, refused)
    tally.count(refused)
    tally.n_stored = len(rows) - tally.n_failed + len(spooled.no_results)
    tally.check_end(task)


def _valid(model: type[Model], claim: Claim, checkpoint: Checkpoint) -> Checkpoint:
    """Return the rows that have not ended since, and whose input was not modified."""

    def is_open(k: object) -> bool:
        place = claim.positions.get(k) if k is not None else None
        return place is not None and claim.outcomes[place] == Outcome.PENDING

    rows = [y.handed for y in checkpoint.results] + [f.handed for f in checkpoint.failures]
    keys = [handed.key for handed in rows + checkpoint.no_results]
    modified = moments(model, [k for k in keys if k is not None and is_open(k)])

    def is_valid(row: HandedRow) -> bool:
        k, at = row.key, row.modified
        return is_open(k) and k in modified and (at is None or modified[k] == at)

    return Checkpoint(
        [yielded for yielded in checkpoint.results if is_valid(yielded.handed)],
        [failure for failure in checkpoint.failures if is_valid(failure.handed)],
        list(filter(is_valid, checkpoint.no_results)),
    )
