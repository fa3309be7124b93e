"""``astra demo``: all steps on SQLite, with a process that is killed half-way."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shlex import quote

import numpy as np

from astra.api import create_plan, init_database
from astra.cli import show
from astra.database.connection import bind, connection, database, reset, tuples
from astra.errors import UsageError, count
from astra.models import BossVisitSpectrum, Slam, Source
from astra.models.attempts import Attempt
from astra.models.plans import Page
from astra.states import AttemptState

#: The configuration in the folder of the demonstration, also for the commands typed there next.
_SETTINGS = """\
[database]
url = "sqlite:///astra.db"

[run]
dir = "runs"

[element]
# A checkpoint every second: a killed process then loses that much, of a run of seconds.
write_frequency = 1
"""

#: Variables that override this configuration, or name another.
_OVERRIDING = ("ASTRA_CONFIG", "ASTRA_DATABASE_URL", "ASTRA_RUN_DIR")


def run_demo(folder: Path | None, n_rows: int) -> None:
    """Make synthetic spectra, plan, run on two processes, kill one, resume, and show."""
    folder = (folder or Path(tempfile.mkdtemp(prefix="astra-demo-"))).absolute()
    _prepare(folder)
    unset = [name for name in _OVERRIDING if os.environ.pop(name, None)]
    os.chdir(folder)
    reset()
    bind()
    began = time.monotonic()
    _step(f"{n_rows} synthetic spectra of M dwarfs, in {folder}/astra.db")
    init_database()
    make_spectra(n_rows)
    limit = max(n_rows // 8, 5)
    _step(f"astra plan slam.slam --input-model BossVisitSpectrum --page-size {limit}")
    (planned,) = create_plan("slam.slam", BossVisitSpectrum, limit=limit)
    show.planned([planned])
    assert planned.plan is not None  # noqa: S101 - for who checks types: the spectra are new
    _step(f"astra submit {planned.plan} --local -j 2, and one of its processes is killed")
    _submit_and_kill(planned.plan)  # it shows how the plan stands at its end
    _step(f"astra resume {planned.plan} --local -j 2")
    _start("resume", str(planned.plan)).wait()
    _step("results")
    _show_results()
    show.line(f"\nall in {time.monotonic() - began:.0f} s; what to type next:")
    show.line(f"  cd {quote(str(folder))}")
    if unset:
        show.line(f"  unset {' '.join(unset)}")
    program = Path(sys.executable).with_name("astra")  # not there after pip install --user
    astra = quote(str(program)) if program.exists() else f"{quote(sys.executable)} -m astra"
    for command in (f"status {planned.plan} --pages", f"logs {planned.plan} 1", "plan slam.slam"):
        show.line(f"  {astra} {command}")


def _prepare(folder: Path) -> None:
    """Make the folder with its configuration; a folder with another archive is left alone."""
    file = folder / "astra.toml"
    instead = "name another: astra demo FOLDER"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists() or file.read_text() != _SETTINGS:
            for name in ("astra.toml", "astra.db"):
                if (folder / name).exists():
                    raise UsageError(
                        f"{folder} has an {name} that does not belong to a demonstration; {instead}"
                    )
        file.write_text(_SETTINGS)
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}; {instead}") from error


def _step(text: str) -> None:
    prompt = "$ " if text.startswith("astra ") else ""
    show.console.print(f"\n[bold]{prompt}{text}[/]")


def make_spectra(n_rows: int) -> None:
    """Insert `n_rows` spectra of M dwarfs at S/N 30 to 100, each of a source of its own."""
    from astra.pipelines.slam import synthetic

    rng = np.random.default_rng(8)
    labels = synthetic.random_labels(rng, n_rows, margin=0.1)
    with connection(), database.atomic():
        first = Source.select().count()
        for i, star in enumerate(labels):
            source = Source.create(sdss_id=first + i + 1)
            snr = float(rng.uniform(30, 100))
            wavelength, flux, ivar = synthetic.spectrum(star, snr, rng)
            BossVisitSpectrum.create(
                source=source.pk, snr=snr, wavelength=wavelength,
                flux=flux.astype(np.float32), ivar=ivar.astype(np.float32),
            )  # fmt: skip


def _submit_and_kill(plan: int) -> None:
    """Run the plan in another process, and SIGKILL an element that has claimed rows."""
    runner = _start("submit", str(plan))
    killed = None
    while runner.poll() is None:
        if killed is None and (victim := _victim(plan)) is not None:
            os.kill(victim.pid, signal.SIGKILL)
            killed = victim
            show.line(f"kill -9 {victim.pid}   (page {victim.page.number})")
        time.sleep(0.02)
    if killed is None:
        show.line("the plan had ended before a process was killed")
        return
    with connection():
        last = Attempt.select().where(Attempt.page == killed.page).order_by(Attempt.pk.desc()).get()
    if last.pid != killed.pid:
        show.line(f"process {last.pid} took over page {killed.page.number} of the killed one")


def _start(*arguments: str) -> "subprocess.Popen[bytes]":
    """Start a command of astra's on two local processes."""
    argv = [sys.executable, "-P", "-m", "astra", *arguments, "--local", "-j", "2"]
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL)


def _victim(plan: int) -> Attempt | None:
    """Return the latest attempt without a stored result, once half of the rows have ended."""
    with connection():
        pages = list(Page.select().where(Page.plan == plan))
        if sum(p.n_pending for p in pages) * 2 > sum(p.n_rows for p in pages):
            return None
        return (
            Attempt.select(Attempt, Page)
            .join(Page)
            .where((Page.plan == plan) & (Attempt.state == AttemptState.RUNNING.value))
            .where(Attempt.n_checkpoints == 0)
            .order_by(Attempt.began.desc())
            .first()
        )


def _show_results() -> None:
    table = show.Listing(
        "spectrum_pk>", "S/N>", "teff>", "+-", "logg>", "fe_h>", "alpha_fe>", "chi2>"
    )
    with connection():
        rows = list(Slam.select().order_by(Slam.spectrum_pk).limit(8))
        n = Slam.select().count()
        columns = BossVisitSpectrum.spectrum_pk, BossVisitSpectrum.snr
        snr = dict(tuples(BossVisitSpectrum.select(*columns)))
    for r in rows:
        numbers = (
            (snr[r.spectrum_pk], 0), (r.teff, 0), (r.e_teff, 0), (r.logg, 2), (r.fe_h, 2),
            (r.alpha_fe, 2), (r.reduced_chi2, 2),
        )  # fmt: skip
        cells = ("" if n is None else f"{n:.{digits}f}" for n, digits in numbers)
        table.add(str(r.spectrum_pk), *cells)
    table.print(show.console)
    show.line(f"... {count(n, 'result')} in the table slam, each spectrum once")
