"""The task that is run while faults happen. What becomes of a row follows from its key alone."""

import ctypes
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from peewee import BigIntegerField, FloatField, IntegerField

from astra import task
from astra.models import BossVisitSpectrum, PipelineOutputModel


class Ordeal(PipelineOutputModel):
    value = FloatField()
    n = BigIntegerField()
    extra = IntegerField(null=True)


#: Rows whose `n` has no room in a smallint; the others' has.
WIDE = range(90, 1000)


def n_of(key: int) -> int:
    return key * 1001 if key in WIDE else key


def value_of(key: int, snr: float) -> float:
    """Return what a serial run computes from the row as it was read."""
    return key * 1000.0 + snr


@lru_cache(maxsize=1)
def fates(path: str) -> dict[int, str]:
    return {int(key): fate for key, fate in json.loads(Path(path).read_text()).items()}


@task
def endure(
    spectra: Iterable[BossVisitSpectrum], fates_in: str, computed: str, row_s: float = 0.0
) -> Iterable[Ordeal]:
    """Yield a result for each row except those with another fate; record each row first."""
    known = fates(fates_in)
    for spectrum in spectra:
        key = spectrum.spectrum_pk
        note(computed, key, spectrum.modified)
        wait_for_faults(computed)
        if row_s:
            time.sleep(row_s)
        fate = known.get(key)
        if fate == "nothing":
            continue
        suffer(fate)
        yield Ordeal.from_spectrum(
            spectrum, value=value_of(key, spectrum.snr), n=n_of(key), extra=-key
        )


def note(computed: str, key: int, modified: Any) -> None:
    """One line for each time that a row is computed; appended whole, whoever else appends.

    The monotonic clock is one for all processes, whatever they are told of the time of day.
    """
    line = f"{key} {os.getpid()} {time.monotonic():.6f} {modified.timestamp():.6f}\n"
    file = os.open(computed, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def wait_for_faults(computed: str) -> None:
    """Wait with the last rows, where the scenario says so, until all faults were done, or for 40 s."""
    hold = Path(f"{computed}.hold")
    with suppress(FileNotFoundError):  # it goes with the last fault
        while Path(computed).read_bytes().count(b"\n") > int(hold.read_text()):
            if time.time() > hold.stat().st_mtime + 40:
                return
            time.sleep(0.05)


def suffer(fate: str | None) -> None:
    if fate == "raises":
        raise ValueError("this row is bad")
    if fate == "exits":
        os._exit(3)
    if fate == "segfaults":
        ctypes.string_at(0)
    if fate == "aborts":
        os.abort()
    if fate == "hangs":
        time.sleep(3600)
