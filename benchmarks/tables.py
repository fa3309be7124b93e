"""Tables and tasks of the benchmarks; elements import the tasks from here."""

import os
import random
import resource
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from peewee import FloatField, Model, TextField, UUIDField

from astra import task
from astra.database.connection import database, dialect
from astra.models import BossVisitSpectrum, OutputModel, PipelineOutputModel, result_of
from astra.version import CURRENT

COLUMNS = [f"c{i}" for i in range(20)]
MANY = [f"c{i}" for i in range(800)]


class Twenty(PipelineOutputModel):
    """A result of 20 float columns."""

    for _name in COLUMNS:
        locals()[_name] = FloatField(null=True)


class Hundreds(PipelineOutputModel):
    """A result of 800 float columns."""

    for _name in MANY:
        locals()[_name] = FloatField(null=True)


class Named(Model):
    """A table of others, with texts for keys."""

    key = TextField(primary_key=True)
    value = FloatField()


class Marked(Model):
    """The same, with UUIDs."""

    key = UUIDField(primary_key=True)
    value = FloatField()


class OfNamed(OutputModel):
    named = result_of(Named)


class OfMarked(OutputModel):
    marked = result_of(Marked)


@task
def on_named(rows: Iterable[Named]) -> Iterable[OfNamed]:
    for row in rows:
        yield OfNamed.from_row(row)


@task
def on_marked(rows: Iterable[Marked]) -> Iterable[OfMarked]:
    for row in rows:
        yield OfMarked.from_row(row)


_random = random.Random(7)
_VALUES = [{name: _random.gauss(5000, 800) for name in COLUMNS} for _ in range(1000)]
_WIDE = [{name: _random.gauss(5000, 800) for name in MANY} for _ in range(20)]


def science(spectra: Iterable[BossVisitSpectrum]) -> Iterator[Twenty]:
    """A result for each row, at no cost but that of making it."""
    for spectrum in spectra:
        yield Twenty.from_spectrum(spectrum, **_VALUES[spectrum.spectrum_pk % 1000])


@task
def twenty(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Twenty]:
    yield from science(spectra)


def made_by_constructor(spectra: Iterable[BossVisitSpectrum]) -> Iterator[Twenty]:
    """The results of `science`, each made as one makes any object of a peewee model."""
    for spectrum in spectra:
        pk = spectrum.spectrum_pk
        yield Twenty(spectrum_pk=pk, input_modified=spectrum.modified, **_VALUES[pk % 1000])


@task
def constructed(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Twenty]:
    yield from made_by_constructor(spectra)


@task
def hundreds(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Hundreds]:
    for spectrum in spectra:
        yield Hundreds.from_spectrum(spectrum, **_WIDE[spectrum.spectrum_pk % 20])


@task
def waiting(spectra: Iterable[BossVisitSpectrum], row_s: float = 0.001) -> Iterable[Twenty]:
    """Science that keeps a core busy for `row_s` a row."""
    for spectrum in spectra:
        until = time.perf_counter() + row_s
        while time.perf_counter() < until:
            pass
        yield Twenty.from_spectrum(spectrum, c0=1.0)


@task(write_frequency=1)
def sleeping(spectra: Iterable[BossVisitSpectrum], row_s: float = 1.0) -> Iterable[Twenty]:
    """Science that is done elsewhere; a checkpoint every second."""
    for spectrum in spectra:
        time.sleep(row_s)
        yield Twenty.from_spectrum(spectrum, c0=1.0)


@task(batch_size=50)
def often(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Twenty]:
    """As :func:`twenty`, with a checkpoint for every 50 rows."""
    yield from science(spectra)


def rows_in_memory(n_rows: int) -> list[BossVisitSpectrum]:
    """Rows as they are read, of which a result repeats these columns."""
    now = datetime.now(UTC)
    keys = range(1, n_rows + 1)
    return [BossVisitSpectrum(spectrum_pk=key, source=1, modified=now) for key in keys]


def fill(n_rows: int, n_done: int = 0) -> None:
    """Spectra by SQL, each modified at a time of its own in no order of their keys.

    The first `n_done` of them have an up-to-date result in the table of :class:`Twenty`.
    """
    postgresql = dialect().name == "postgresql"
    numbers = (
        f"SELECT i FROM generate_series(1, {n_rows}) AS s(i)"
        if postgresql
        else f"WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < {n_rows}) "
        "SELECT i FROM s"
    )
    mod = "%%" if postgresql else "%"  # psycopg2's sign of a parameter
    run = database.execute_sql
    n_sources = min(n_rows, 1000)
    run(f"INSERT INTO source (sdss_id) SELECT i FROM ({numbers}) AS n WHERE i <= {n_sources}")
    run(f"INSERT INTO spectrum (pk, kind) SELECT i, 'boss_visit_spectrum' FROM ({numbers}) AS n")
    modified = (
        f"timestamptz '2026-01-01' + (i::bigint * 7919 {mod} 1000003) * interval '1 second'"
        if postgresql
        else "strftime('%Y-%m-%d %H:%M:%f', '2026-01-01', (i * 7919 % 1000003) || ' seconds')"
        " || '000'"
    )
    run(
        "INSERT INTO boss_visit_spectrum (spectrum_pk, source_pk, snr, modified, spectrum_flags) "
        f"SELECT i, i {mod} {n_sources} + 1, i, {modified}, 0 FROM ({numbers}) AS n"
    )
    if n_done:
        # Results of rows spread over all keys, as a night leaves them.
        run(
            "INSERT INTO twenty (spectrum_pk, source_pk, v_astra, tag, input_modified, input_read,"
            " c0) SELECT spectrum_pk, source_pk, "
            f"{CURRENT.number}, '', modified, modified, 1 FROM boss_visit_spectrum "
            f"WHERE spectrum_pk * 7919 {mod} {n_rows} < {n_done}"
        )
    if postgresql:
        run("VACUUM ANALYZE")
    else:
        run("ANALYZE")


def processor_s() -> float:
    """Processor time that this process and the one which forked it have used up to now."""
    of_parent = (~os.getppid() << 3) | 2  # its clock, as clock_getcpuclockid(3) computes it
    return time.process_time() + time.clock_gettime(of_parent)


@task
def noting(spectra: Iterable[BossVisitSpectrum], path: str = "") -> Iterable[Twenty]:
    """Notes its clock, processor time and memory at its first row and at each 1,000th."""
    for n_rows, spectrum in enumerate(spectra, 1):
        if n_rows == 1 or n_rows % 1000 == 0:
            size_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with open(path, "a") as file:
                file.write(f"{time.monotonic()} {processor_s()} {size_kb}\n")
        yield Twenty.from_spectrum(spectrum, c0=float(n_rows))
