"""A task that misbehaves in each way that code can, on a page of its own for each."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable

from astra import task
from astra.database.connection import database
from astra.models import BossVisitSpectrum
from tests.sample_tasks import Measured

#: Rows of a page; the row of the page, counted from 0, that it misbehaves in.
ROWS, PLACE = 6, 3

#: What it does in which page, in this order.
WAYS = (
    "raises in the first row",
    "raises in the middle",
    "raises in the last row",
    "raises after the last row",
    "raises in a thread",
    "raises megabytes",
    "calls sys.exit",
    "panics",
    "raises KeyboardInterrupt",
    "raises GeneratorExit",
    "calls os._exit",
    "segfaults",
    "leaves a child behind",
    "calls sys.exit in a fork",
    "prints a gigabyte",
    "leaves a transaction open",
    "closes the connection",
    "catches every exception",
)

#: What a child that outlives its parent is called.
LEFT_BEHIND = "import time; time.sleep(600)  # left behind"


class Panic(BaseException):
    """As extensions in Rust raise it: it is no `Exception`."""


@task
def misbehave(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    way = ""
    for spectrum in spectra:
        page, place = divmod(spectrum.spectrum_pk - 1, ROWS)
        way, place = WAYS[page], ROWS - 1 - place  # the newest rows come first
        try:
            _do(way, place)
        except Exception:
            if way != "catches every exception":
                raise
        yield Measured.from_spectrum(spectrum, value=spectrum.spectrum_pk * 0.5)
    if way == "raises after the last row":
        raise ValueError("all is done")


def _do(way: str, place: int) -> None:
    places = {"raises in the first row": 0, "raises in the last row": ROWS - 1}
    if place != places.get(way, PLACE):
        return
    if way.startswith(("raises in the", "catches")):
        raise ValueError(f"row {place} is bad")
    if way == "raises in a thread":
        thread = threading.Thread(target=_do, args=("raises in the middle", place))
        thread.start()
        thread.join()
    if way == "raises megabytes":
        raise ValueError("x" * (5 << 20))
    if way == "panics":
        raise Panic("in Rust")
    if way == "raises KeyboardInterrupt":
        raise KeyboardInterrupt("of its own")
    if way == "raises GeneratorExit":
        raise GeneratorExit("of its own")
    if way == "calls sys.exit":
        sys.exit(5)
    if way == "calls os._exit":
        os._exit(5)
    if way == "segfaults":
        ctypes.string_at(0)
    if way == "leaves a child behind":
        subprocess.Popen([sys.executable, "-c", LEFT_BEHIND], start_new_session=True)
    if way == "calls sys.exit in a fork":
        pid, until = os.fork(), time.monotonic() + 20
        if pid == 0:
            sys.exit(3)
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.01)
        if os.waitstatus_to_exitcode(ended[1]) != 3:
            raise ValueError("the fork has not ended")
    if way == "prints a gigabyte":
        for _ in range(1024):
            os.write(1, b"x" * (1 << 20))
    if way == "leaves a transaction open":
        database.connect(reuse_if_open=True)
        database.begin()
        database.execute_sql("DELETE FROM boss_visit_spectrum")
    if way == "closes the connection":
        database.connect(reuse_if_open=True)
        database.connection().close()


@task
def hopeless(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    """Raises before it asks for a row."""
    raise FileNotFoundError("model.npz is not there")
    yield from spectra
