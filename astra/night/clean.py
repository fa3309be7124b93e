"""Remove old plans that are whole or cancelled, with their logs and scripts.

Results are never removed. Nor are failures and records of no result: without them, their rows would
be pending again. The record of a night with its totals is kept for longer.
"""

import shutil
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from peewee import JOIN, fn

from astra.config import settings as config
from astra.config.run_folder import new_file, run_folder, spool_files
from astra.database.connection import connection, dialect, tuples, writing
from astra.errors import BusyError, UsageError
from astra.models.archive import check_archive
from astra.models.attempts import Attempt, Exclusion
from astra.models.nights import Night, NightPlan
from astra.models.plans import Page, Plan
from astra.models.table_checks import check_version
from astra.night.totals import store_totals
from astra.records import dataclass
from astra.states import AttemptState
from astra.submit.intent import plan_lock

T = TypeVar("T")


@dataclass(frozen=True)
class Cleaned:
    """What was removed, or would be.

    Examples
    --------
    >>> from astra.api import clean
    >>> clean(keep_days=365).mb
    0.0
    """

    before: datetime  #: plans that have been inactive since then are chosen
    plans: tuple[int, ...]  #: numbers of the plans
    pages: int  #: pages of those plans
    attempts: int  #: attempts of those plans
    nights: tuple[int, ...]  #: numbers of the nights whose records are removed
    folders: tuple[str, ...]  #: folders of scripts and logs
    mb: float  #: size of those folders [MB]
    compressed: tuple[str, ...] = ()  #: folders of remaining plans that are packed
    kept: tuple[str, ...] = ()  #: old plans that are kept, and why
    dry_run: bool = True  #: True: nothing was removed


def clean(
    keep_days: float | None = None, dry_run: bool = True, now: datetime | None = None
) -> Cleaned:
    """Remove old plans that are whole or cancelled, and their logs and scripts.

    A folder that cannot be removed or packed is kept with its plan or night; all others go.

    Parameters
    ----------
    keep_days : float, optional
        Age of the plans that are removed [days]; default the configured ``[clean] keep_days``.
    dry_run : bool
        Only return what would be removed.
    now : datetime, optional
        The present time; by default, that of the database's clock.

    Returns
    -------
    Cleaned
        What was removed, or would be.

    Raises
    ------
    DatabaseError
        If the tables are of another version, or the archive was moved.

    Examples
    --------
    >>> from astra.api import clean
    >>> clean(keep_days=365).plans
    ()
    """
    check_version()
    check_archive()
    settings = config.current().clean
    with connection():
        now = now or dialect().now()
        before = now - timedelta(days=settings.keep_days if keep_days is None else keep_days)
        old, remaining = _old_plans(before)
        closed = _old_nights(before)
        expired = _old_nights(now - timedelta(days=settings.keep_nights_days))
    packed = _to_pack(now, settings.compress_days, {plan.pk for plan in old})
    folders = _existing(chain(*map(_paths_of, old), (run_folder(n.folder) for n in closed)))
    sizes = {folder: _size(folder) for folder in folders}
    gone, records = old, _n_records(old)
    if not dry_run:
        gone = _each(old, partial(_remove_plan, before=before), remaining)
        records.subtract(_n_records(old))
        ended = now - timedelta(days=settings.compress_days)
        packed = _each(packed, partial(_pack, before=ended), remaining)
        _each([f for f in folders if f.name.startswith("night-")], _remove, remaining)
        sizes = {folder: size for folder, size in sizes.items() if not folder.exists()}
        expired = [night for night in expired if not _existing([run_folder(night.folder)])]
        _forget(expired, before)
    return Cleaned(
        before, tuple(plan.pk for plan in gone), records["pages"], records["attempts"],
        tuple(night.pk for night in expired), tuple(map(str, sizes)),
        round(sum(sizes.values()) / 1e6, 3),
        tuple(str(run_folder(plan.folder)) for plan in packed), tuple(remaining), dry_run,
    )  # fmt: skip


def _n_records(plans: Iterable[Plan]) -> Counter[str]:
    """Count the pages and attempts of some plans that are in the database."""
    of_plans = Page.plan.in_([plan.pk for plan in plans] or [0])
    with connection():
        return Counter(
            pages=Page.select().where(of_plans).count(),
            attempts=Attempt.select().join(Page).where(of_plans).count(),
        )


def _paths_of(plan: Plan) -> list[Path]:
    """Return the folder of a plan, the archive that it was packed into, and an unfinished one."""
    folder = run_folder(plan.folder)
    archive = folder.with_name(f"{folder.name}.tar.gz")
    return [folder, archive, folder.with_name(f".{archive.name}")]


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.exists() and not path.is_symlink()]


def _to_pack(now: datetime, days: float, removed: set[int]) -> list[Plan]:
    """Return the plans that ended more than `days` ago and whose folders are not packed yet."""
    if not days:
        return []
    with connection():
        ended, _ = _old_plans(now - timedelta(days=days))
    return [p for p in ended if p.pk not in removed and _existing([run_folder(p.folder)])]


def _each(items: Iterable[T], step: Callable[[T], None], remaining: list[str]) -> list[T]:
    """Run a step that removes an item; return the items that are gone.

    The reasons for which others are kept are added to `remaining`.
    """
    gone = []
    for item in items:
        try:
            step(item)
            gone.append(item)
        except (BusyError, UsageError) as error:
            remaining.append(str(error))
    return gone


def _pack(plan: Plan, before: datetime) -> None:
    """Pack a plan's folder into an archive; remove it once the archive is complete."""
    folder, archive, unfinished = _paths_of(plan)
    with _unused(plan, before):
        try:
            unfinished.unlink(missing_ok=True)  # of a process that was killed
            with new_file(unfinished) as file, tarfile.open(fileobj=file, mode="w:gz") as tar:
                if archive.exists():
                    _copy_earlier(archive, tar)
                tar.add(folder, folder.name)
            unfinished.rename(archive)
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            unfinished.unlink(missing_ok=True)
            raise UsageError(f"{folder} cannot be packed: {error}; it is kept") from error
        _remove(folder)


def _copy_earlier(archive: Path, tar: tarfile.TarFile) -> None:
    """Copy what a folder lacks from its earlier archive.

    Its plan was used since, or a process was killed while it removed the folder.
    """
    with tarfile.open(archive) as earlier:
        for member in earlier:
            if not (archive.parent / member.name).exists():
                tar.addfile(member, earlier.extractfile(member) if member.isfile() else None)


def _old_plans(before: datetime, only: Plan | None = None) -> tuple[list[Plan], list[str]]:
    """Return the old plans to remove, and why other old plans remain; only about one, if given."""
    ended = fn.SUM(Page.n_done + Page.n_failed + Page.n_no_result)
    in_open_night = (
        NightPlan.select(NightPlan.plan_pk)
        .join(Night)
        .where(Night.ended.is_null() & NightPlan.plan_pk.is_null(False))
    )
    needed = {pk for (pk,) in tuples(in_open_night)}
    query = (
        Plan.select(Plan.pk, Plan.token, Plan.cancelled, Plan.n_rows, ended, fn.MAX(Page.modified))
        .join(Page, JOIN.LEFT_OUTER)
        .where((Plan.created < before) & (Plan.pk == only.pk if only else True))
        .group_by(Plan.pk, Plan.token, Plan.cancelled, Plan.n_rows)
        .order_by(Plan.pk)
    )
    attempts = (
        Attempt.select(
            Page.plan,
            fn.MAX(Attempt.seen),
            fn.SUM((Attempt.state == AttemptState.RUNNING.value).cast("integer")),
        )
        .join(Page)
        .where(Page.plan == only.pk if only else True)
        .group_by(Page.plan)
    )
    last_seen = {plan: (seen, running) for plan, seen, running in tuples(attempts)}
    old, remaining = [], []
    for pk, token, cancelled, n_rows, n_ended, modified in tuples(query):
        plan = Plan(pk=pk, token=token)
        seen, running = last_seen.get(pk, (None, 0))
        if any(moment >= before for moment in (modified, seen) if moment is not None):
            continue
        if cancelled is None and (n_ended or 0) < n_rows:
            remaining.append(f"plan {pk} is not whole: astra status {pk}")
        elif running:
            remaining.append(f"plan {pk} has an attempt that has not ended: astra status {pk}")
        elif pk in needed:
            remaining.append(f"plan {pk} belongs to a night that is not closed: astra nights")
        elif spool_files(plan.folder):
            remaining.append(f"plan {pk} has spool files: astra recover {pk}")
        else:
            old.append(plan)
    return old, remaining


@contextmanager
def _unused(plan: Plan, before: datetime) -> Iterator[None]:
    """Hold the lock of an old plan, unless it was used meanwhile.

    Raises
    ------
    UsageError
        If it is not to be removed after all.
    """
    with plan_lock(plan):
        with connection():
            old, remaining = _old_plans(before, plan)
        if not old:
            raise UsageError("".join(remaining) or f"plan {plan.pk} was used meanwhile")
        yield


def _old_nights(before: datetime) -> list[Night]:
    query = Night.select(Night.pk, Night.token)
    query = query.where(Night.ended.is_null(False) & (Night.ended < before))
    return list(query.order_by(Night.pk))


def _forget(nights: Iterable[Night], before: datetime) -> None:
    """Remove the records of some nights, and of nodes that were excluded until long ago."""
    with connection(), writing():
        Night.delete().where(Night.pk.in_([night.pk for night in nights] or [0])).execute()
        Exclusion.delete().where(Exclusion.until < before).execute()


def _remove_plan(plan: Plan, before: datetime) -> None:
    """Remove a plan and its files.

    Its files are removed first: if this is interrupted, the plan is found again and removed later.
    """
    with _unused(plan, before):
        for path in _paths_of(plan):
            _remove(path)
        with connection():  # rows may have ended since its night was closed
            entries = list(NightPlan.select().where(NightPlan.plan_pk == plan.pk))
        store_totals(entries)
        with connection(), writing():
            Plan.delete().where(Plan.pk == plan.pk).execute()  # and with it its pages


def _remove(path: Path) -> None:
    if not _existing([path]):
        return
    try:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise UsageError(f"{path} cannot be removed: {error}; it is kept") from error


def _size(folder: Path) -> int:
    """Return the size of a folder, which another process may be removing."""
    size = 0
    with suppress(FileNotFoundError):
        for file in chain([folder], folder.rglob("*")):
            size += file.lstat().st_size
    return size
