"""How fast `@task` writes results, beside what one would write by hand.

    python -m benchmarks.write [--quick]

The same generator makes the same results for both sides of a line; peewee and COPY write them in
the same batches, each batch a transaction. PostgreSQL lives on the disk, with its default
durability. astra writes a page of a plan: the unique constraint, a failure told apart from its
batch, the page's progress in the same transaction. Its input rows are in memory, as those of the
others are. The least time of each, in turn: of three rounds with peewee, which takes long, of six
with COPY, and of twelve on SQLite.
"""

import io
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from astra.database.connection import connection, database, dialect
from astra.element.claiming import claim_page, this_process
from astra.models import BossVisitSpectrum
from astra.models.importing import load
from astra.models.pipeline import PipelineOutputModel
from astra.plan.lookup import get_plan
from astra.plan.plan import create_plan
from astra.results.rows import HandedRow, target_of
from astra.results.stopping import Stop, Tally
from astra.results.writer import Writer
from astra.tasks.declared import bind_call, caller
from astra.tasks.run import Run
from benchmarks.elements import submitted
from benchmarks.lines import Line, bound, main, postgres, say, timed
from benchmarks.tables import (
    Twenty,
    constructed,
    fill,
    hundreds,
    made_by_constructor,
    rows_in_memory,
    science,
    twenty,
)


def by_batches(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch


def empty() -> None:
    """No results, and no plans."""
    found = set(database.get_tables())
    for table in found & {"twenty", "hundreds", "raw", "plan", "submission"}:
        if dialect().name == "postgresql":
            database.execute_sql(f"TRUNCATE {table} CASCADE")
        else:
            database.execute_sql(f"DELETE FROM {table}")


class RowsInMemory:
    """The rows of a page as its reader hands them over, without reading them."""

    groups: tuple[()] = ()

    def __init__(self, rows: list[Any], read: datetime) -> None:
        self.rows, self.read = rows, read

    def __iter__(self) -> Iterator[HandedRow]:
        for row in self.rows:
            pk = row.spectrum_pk
            yield HandedRow(pk, row, row.modified, self.read, link_value=pk)

    def reread(self, keys: list[Any]) -> Iterator[HandedRow]:
        raise SystemExit(f"rows failed: {keys}")


class WholePage:
    """A claimed page of a plan, ready to be run; made anew before each measurement."""

    def __init__(self, task: Any, rows: list[Any]) -> None:
        self.task, self.rows = task, rows
        self.prepare()

    def prepare(self) -> None:
        with connection():
            empty()
        (made,) = create_plan(self.task, BossVisitSpectrum, limit=len(self.rows))
        self.plan = get_plan(made.plan)
        submission = submitted(made, 1)
        with connection():
            self.claim = claim_page(self.plan, 1, submission, 1, this_process("local", Path()))
            self.read = dialect().now()

    def write(self, batch_size: int) -> None:
        settings, bound_ = bind_call(
            self.task, (iter(()),), {"batch_size": batch_size, "re_raise_exceptions": False}
        )
        output = load(self.plan.output_model)
        target = target_of(self.plan, BossVisitSpectrum, output, 1)
        writer = Writer(settings, target, Stop(), Tally(), self.claim)
        rows = RowsInMemory(self.rows, self.read)
        run = Run(rows, caller(self.task, bound_), writer, len(self.rows))
        for _ in run:
            pass
        if self.claim.outcomes.count(1) != len(self.rows):
            raise SystemExit("not every row has its result")


def peewee_way(model: Any, generator: Any, rows: list[Any], batch_size: int) -> None:
    key = [model.spectrum_pk, model.v_astra_major_minor, model.result_number]
    kept = [f for f in model._meta.sorted_fields if f.name not in
            ("task_pk", "created", "modified", "v_astra_major_minor")]  # fmt: skip
    with connection():
        for batch in by_batches(generator(rows), batch_size):
            with database.atomic():
                values = [tuple(result.__data__.values()) for result in batch]
                query = model.insert_many(values, fields=list(batch[0].__data__))
                query = query.on_conflict(conflict_target=key, preserve=kept)
                list(query.returning(model.task_pk).tuples().execute())


def copy_way(table: str, generator: Any, rows: list[Any], batch_size: int) -> None:
    with connection():
        raw = database.connection()
        for batch in by_batches(generator(rows), batch_size):
            names = list(batch[0].__data__)
            text = "".join("\t".join(map(str, result.__data__.values())) + "\n" for result in batch)
            with raw.cursor() as cursor:
                columns = ", ".join(f'"{name}"' for name in names)
                cursor.copy_expert(f"COPY {table} ({columns}) FROM STDIN", io.StringIO(text))
            raw.commit()


def executemany_way(path: str, generator: Any, rows: list[Any], batch_size: int) -> None:
    raw = sqlite3.connect(path, isolation_level=None)
    raw.execute("PRAGMA synchronous = 1")
    sql = None
    for batch in by_batches(generator(rows), batch_size):
        values = [result.__data__ for result in batch]
        for row in values:
            row["input_modified"] = row["input_modified"].isoformat(" ")[:26]
        if sql is None:
            names = list(values[0])
            sql = (
                f"INSERT INTO twenty ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
                "ON CONFLICT (spectrum_pk, v_astra_major_minor, result_number) DO UPDATE SET "
                + ", ".join(f"{name} = excluded.{name}" for name in names)
            )
        raw.execute("BEGIN IMMEDIATE")
        raw.executemany(sql, [tuple(row.values()) for row in values])
        raw.execute("COMMIT")
    raw.close()


def with_astras_columns(generator: Any) -> Any:
    """The same results with values in the columns that astra fills: equal rows for all."""

    def results(rows: Iterable[Any]) -> Iterator[PipelineOutputModel]:
        for result in generator(rows):
            data = result.__data__
            data["input_read"] = data["input_modified"]
            data["attempt_pk"], data["t_elapsed"], data["t_overhead"] = 1, 1e-4, 0.0
            yield result

    return results


def _rates(page: WholePage, rounds: int, batch_size: int, other: Callable[[], None]) -> list[float]:
    """Rows per second of astra and of the other: the least time of each, in turn."""
    found = [float("inf")] * 2
    for _ in range(rounds):
        for i, work in enumerate((partial(page.write, batch_size), other)):
            page.prepare()
            found[i] = min(found[i], timed(work))
    return [len(page.rows) / seconds for seconds in found]


def on_postgresql(n_rows: int, rounds: int) -> Iterator[Line]:
    rows = rows_in_memory(n_rows)
    by_constructor = with_astras_columns(made_by_constructor)
    plain = with_astras_columns(science)
    with postgres(is_durable=True):
        with connection():
            fill(n_rows)
            database.execute_sql("CREATE TABLE raw (LIKE twenty INCLUDING ALL)")
        for size, least_copy in ((1000, 0.8), (10_000, 0.9)):
            size = min(size, n_rows)
            say(f"writing to PostgreSQL in batches of {size}")
            what = f"writing {n_rows:,} rows, batches of {size:,}"
            by_peewee = partial(peewee_way, Twenty, by_constructor, rows, size)
            ours, theirs = _rates(WholePage(constructed, rows), rounds, size, by_peewee)
            yield Line(what, ours, theirs, "rows/s", ">= 6", "peewee insert_many")
            by_copy = partial(copy_way, "raw", plain, rows, size)
            ours, theirs = _rates(WholePage(twenty, rows), 2 * rounds, size, by_copy)
            yield Line(what, ours, theirs, "rows/s", f">= {least_copy}", "raw COPY")


def wide(n_rows: int, rounds: int) -> Iterator[Line]:
    """Results of 800 columns, which are told in docs/scaling.md."""
    rows = rows_in_memory(n_rows)
    plain = with_astras_columns(hundreds.__astra__.function)
    with postgres(is_durable=True):
        with connection():
            fill(n_rows)
            database.execute_sql("CREATE TABLE raw (LIKE hundreds INCLUDING ALL)")
        page = WholePage(hundreds, rows)
        ours, copy = _rates(page, rounds, 1000, partial(copy_way, "raw", plain, rows, 1000))
        yield Line(f"writing {n_rows:,} rows of 800 columns", ours, copy, "rows/s", "", "raw COPY")


def on_sqlite(n_rows: int, rounds: int) -> Iterator[Line]:
    rows = rows_in_memory(n_rows)
    plain = with_astras_columns(science)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/astra.db"
        bound(f"sqlite:///{path}")
        with connection():
            fill(n_rows)
        say("writing to SQLite")
        page = WholePage(twenty, rows)
        by_hand = partial(executemany_way, path, plain, rows, 1000)
        ours, theirs = _rates(page, rounds, 1000, by_hand)
        what = f"writing {n_rows:,} rows to SQLite, batches of 1,000"
        yield Line(what, ours, theirs, "rows/s", ">= 0.7", "executemany")
        database.close()


def measure(quick: bool) -> Iterator[Line]:
    n_rows, rounds = (1_000, 1) if quick else (100_000, 3)
    yield from on_postgresql(n_rows, rounds)
    yield from on_sqlite(n_rows, 4 * rounds)
    yield from wide(100 if quick else 5_000, rounds)


if __name__ == "__main__":
    main(measure, __doc__)
