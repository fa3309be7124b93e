"""Tasks for the tests, which elements in other processes import as ``tests.sample_tasks``."""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from peewee import FloatField, IntegerField, SmallIntegerField, TextField

from astra import task
from astra.database.connection import connection, database
from astra.models import BossCombinedSpectrum, BossVisitSpectrum, PipelineOutputModel, Source


class Measured(PipelineOutputModel):
    value = FloatField()
    small = SmallIntegerField(null=True)
    text = TextField(null=True)
    number = IntegerField(null=True, default=7)


class OfSource(PipelineOutputModel):
    value = FloatField()


class Costs(PipelineOutputModel):
    value = FloatField()


class Never(PipelineOutputModel):
    value = FloatField()


@task
def measure(
    spectra: Iterable[BossVisitSpectrum | BossCombinedSpectrum],
    row_s: float = 0.0,
    slow_until: str = "",
    raise_every: int = 0,
    null_every: int = 0,
    nothing_every: int = 0,
    computed: str | None = None,
    spin_s: float = 0.0,
) -> Iterable[Measured]:
    """A value for each spectrum; raises, refuses and yields nothing where its arguments say so.

    Each row takes `row_s`, or until a file of the name `slow_until` exists.
    """
    for spectrum in spectra:
        key = spectrum.spectrum_pk
        if computed:
            with open(computed, "a") as file:
                file.write(f"{key}\n")
        if row_s:
            pause(row_s, slow_until)
        until = time.process_time() + spin_s
        while time.process_time() < until:
            pass
        if raise_every and key % raise_every == 0:
            raise ValueError(f"row {key} is bad")
        if nothing_every and key % nothing_every == 0:
            continue
        bad = null_every and key % null_every == 0
        yield Measured.from_spectrum(spectrum, value=None if bad else key * 0.5)


def pause(row_s: float, slow_until: str) -> None:
    """Wait for so long; if a file is named, only until it exists."""
    if not slow_until:
        time.sleep(row_s)
        return
    end = time.monotonic() + row_s
    while (left_s := end - time.monotonic()) > 0 and not os.path.exists(slow_until):
        time.sleep(min(left_s, 0.05))


@task
def costly(
    spectra: Iterable[BossVisitSpectrum],
    row_s: float = 0.0,
    load_s: float = 0.0,
    mb: int = 0,
    raise_every: int = 0,
    nothing_every: int = 0,
    kill_at: int = 0,
    kill_with: int = signal.SIGSEGV,
) -> Iterable[Costs]:
    """A task of known cost: time to load, time and memory for its rows."""
    time.sleep(load_s)
    held = b"x" * (mb << 20)
    for spectrum in spectra:
        key = spectrum.spectrum_pk
        time.sleep(row_s)
        if key == kill_at:
            os.kill(os.getpid(), kill_with)
        if raise_every and key % raise_every == 0:
            raise ValueError(f"row {key} is bad")
        if nothing_every and key % nothing_every == 0:
            continue
        yield Costs.from_spectrum(spectrum, value=float(len(held)))


@task
def bad_then_patient(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Raises at key 3; at key 1 it waits until all see the result of key 2, and says how long."""
    for spectrum in spectra:
        key, began = spectrum.spectrum_pk, time.monotonic()
        if key == 3:
            raise ValueError("row 3 is bad")
        while key == 1 and time.monotonic() - began < 20:
            with connection():
                if Measured.select().where(Measured.spectrum_pk == 2).exists():
                    break
            time.sleep(0.01)
        yield Measured.from_spectrum(spectrum, value=time.monotonic() - began)


@task
def collect(spectra: Iterable[BossVisitSpectrum], bad: int = 0) -> Iterable[Measured]:
    """Takes all its rows before it yields: nobody can see which row it stumbled on."""
    rows = list(spectra)
    if any(row.spectrum_pk == bad for row in rows):
        raise ValueError("one of them")
    for row in rows:
        yield Measured.from_spectrum(row, value=1.0)


@task
def collect_and_hang(spectra: Iterable[BossVisitSpectrum], bad: int = 0) -> Iterable[Measured]:
    """The same, with a row that it never comes to an end with."""
    for row in list(spectra):
        if row.spectrum_pk == bad:
            time.sleep(3600)
        yield Measured.from_spectrum(row, value=1.0)


@task
def close_descriptors(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Closes the descriptors of its standard streams, below Python's streams."""
    for row in spectra:
        yield Measured.from_spectrum(row, value=1.0)
    print("the last words of a task")
    os.closerange(0, 3)


@task(batch_size=1)
def close_and_print(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Closes the descriptor of its output, and prints while its results are stored."""
    os.close(1)
    for row in spectra:
        yield Measured.from_spectrum(row, value=1.0)
        until = time.monotonic() + 0.2
        while time.monotonic() < until:
            with suppress(OSError):
                os.write(1, b"a line of a task\n")


@task
def close_output(spectra: Iterable[BossVisitSpectrum], begun: str = "") -> Iterable[Measured]:
    """Closes its standard output and all descriptors, and takes very long for a row."""
    sys.stdout.close()
    os.closerange(3, 256)  # with the one that signals are written to
    for row in spectra:
        Path(begun).touch()
        time.sleep(600)
        yield Measured.from_spectrum(row, value=1.0)


@task
def hang_at(spectra: Iterable[BossVisitSpectrum], bad: int = 0) -> Iterable[Measured]:
    """One row never ends."""
    for row in spectra:
        if row.spectrum_pk == bad:
            time.sleep(3600)
        yield Measured.from_spectrum(row, value=1.0)


@task
def catch_everything(
    spectra: Iterable[BossVisitSpectrum], begun: str = "", then: str = ""
) -> Iterable[Measured]:
    """Catches every exception, also one that ends its process."""
    for row in spectra:
        try:
            Path(begun).touch()
            time.sleep(600)
        except BaseException as error:
            if then == "raises":
                raise ValueError(f"row {row.spectrum_pk} is bad") from error
            if then == "yields":
                yield Measured.from_spectrum(row, value=float("nan"))


@task
def own_handler(
    spectra: Iterable[BossVisitSpectrum], begun: str = "", then: str = ""
) -> Iterable[Measured]:
    """Handles SIGTERM itself, by a function that raises; or no more, so that it dies of it."""

    def on_sigterm(number: int, frame: object) -> None:
        raise {"exits": SystemExit, "interrupts": KeyboardInterrupt, "raises": ValueError}[then]

    signal.signal(signal.SIGTERM, signal.SIG_DFL if then == "dies" else on_sigterm)
    for row in spectra:
        if begun:
            Path(begun).touch()
            time.sleep(600)
        yield Measured.from_spectrum(row, value=1.0)


@task
def close_files(spectra: Iterable[BossVisitSpectrum], at: int = 0) -> Iterable[Measured]:
    """At one row it closes every file of its process, as libraries that become daemons do."""
    for row in spectra:
        if row.spectrum_pk == at:
            os.closerange(3, 1024)
        yield Measured.from_spectrum(row, value=1.0)


@task(batch_size=5)
def leak_files(spectra: Iterable[BossVisitSpectrum], n_files: int) -> Iterable[Measured]:
    """Opens a file for each row, and closes none; its rows take long enough to be stored in parts."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_files, n_files))
    opened = []
    for row in spectra:
        with suppress(OSError):  # and does not notice
            opened.append(os.open(os.devnull, os.O_RDONLY))
        time.sleep(0.02)
        yield Measured.from_spectrum(row, value=1.0)


@task
def keyed(spectra: Iterable[BossVisitSpectrum], bad: int = 0) -> Iterable[Measured]:
    """One of its results bears a key that no row can have."""
    for spectrum in spectra:
        key = spectrum.spectrum_pk
        yield Measured(spectrum_pk=2**70 if key == bad else key, value=1.0)


@task
def echo(
    spectra: Iterable[BossVisitSpectrum],
    path: Path = Path("."),
    pair: tuple[int, str] = (0, ""),
    some: frozenset[int] = frozenset(),
    either: int | str = 0,
    **more: float,
) -> Iterable[Measured]:
    """Its arguments, as they came."""
    for spectrum in spectra:
        text = repr([path, pair, some, either, more])
        yield Measured.from_spectrum(spectrum, value=1.0, text=text)


@task(write_frequency=9.0)
def own_batches(
    spectra: Iterable[BossVisitSpectrum], write_frequency: float, batch_size: int = 2
) -> Iterable[Measured]:
    """What it was told of two keywords that are its own parameters, too."""
    for spectrum in spectra:
        text = f"{batch_size} {write_frequency}"
        yield Measured.from_spectrum(spectrum, value=1.0, text=text)


@task(group_by=("source_pk",))
def per_source(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=1.0)


@task
def on_sources(sources: Iterable[Source]) -> Iterable[OfSource]:
    for source in sources:
        yield OfSource.from_source(source, value=source.pk)


@task
def broken(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Never]:
    if os.path.exists("/nonexistent-model-file") is False:
        raise FileNotFoundError("model.npz is not there")
    yield from ()


def fill(n: int, model: type = BossVisitSpectrum, sources: int = 5) -> None:
    """`n` spectra, of a few sources and every tenth of none."""
    with database.atomic():
        keys = [Source.get_or_create(sdss_id=100 + i)[0].pk for i in range(sources)]
        for start in range(0, n, 1000):
            model.insert_many(
                {"source": None if i % 10 == 9 else keys[i % sources], "snr": float(i)}
                for i in range(start, min(n, start + 1000))
            ).execute()
    database.close()


@task
def poisoned(spectra: Iterable[BossVisitSpectrum], eat_mb: int = 0) -> Iterable[Measured]:
    """Of each 1,000 rows: two raise, one or none kills its process, hangs, or eats memory.

    With `eat_mb` it takes so much and holds it, until Slurm ends the element for it.
    """
    for spectrum in spectra:
        key = spectrum.spectrum_pk
        if key % 500 == 7:
            raise ValueError(f"row {key} is bad")
        if key % 4000 == 11:
            os.kill(os.getpid(), signal.SIGSEGV)
        if key % 10_000 == 13:
            time.sleep(3600)
        if key % 20_000 == 17:
            taken = bytearray(1 << 60) if not eat_mb else b"x" * (eat_mb << 20)
            time.sleep(60)
            del taken
        yield Measured.from_spectrum(spectrum, value=key * 0.5)


@task
def hungry(
    spectra: Iterable[BossVisitSpectrum], mb: int = 0, at: int = 0, die_on: str = ""
) -> Iterable[Measured]:
    """One row takes so much memory; at one node the element is killed whatever it does."""
    for spectrum in spectra:
        if die_on and os.environ.get("SLURMD_NODENAME") == die_on:
            os.kill(os.getppid(), signal.SIGKILL)
        if spectrum.spectrum_pk == at:
            taken = b"x" * (mb << 20)
            time.sleep(4)  # Slurm looks every second
            del taken
        yield Measured.from_spectrum(spectrum, value=1.0)


@task
def frugal(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Limits its memory to less than it has already: it can take no more."""
    import numpy  # noqa: F401 - what stores its results needs it

    resource.setrlimit(resource.RLIMIT_AS, (50 << 20, 50 << 20))
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=1.0)


@task
def crash(spectra: Iterable[BossVisitSpectrum], until: str = "") -> Iterable[Measured]:
    """Every row kills its process until a file exists, as on a node that lacks instructions."""
    for spectrum in spectra:
        if not os.path.exists(until):
            os.kill(os.getpid(), signal.SIGILL)
        yield Measured.from_spectrum(spectrum, value=1.0)


@task
def deadly(spectra: Iterable[BossVisitSpectrum], bad: int = 0) -> Iterable[Measured]:
    """One row ends the whole element, as a memory limit does: nobody is left to say so."""
    for spectrum in spectra:
        if spectrum.spectrum_pk == bad:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        yield Measured.from_spectrum(spectrum, value=1.0)
