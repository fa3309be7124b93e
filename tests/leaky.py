"""A task that tells in its exceptions, and in its log, all that it knows of the connection."""

import logging
import os
from collections.abc import Iterable

from astra import task
from astra.database.connection import database, url
from astra.models import BossVisitSpectrum
from tests.sample_tasks import Measured, Never


@task
def leak(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Measured]:
    for spectrum in spectra:
        known = [url(), os.environ.get("ASTRA_DATABASE_URL"), os.environ.get("PGPASSWORD")]
        known += [
            database.obj.database,
            repr(database.obj.connect_params),
            f"password={known[2]!r}",
        ]
        logging.getLogger().error("connecting to %s", known)
        try:
            raise OSError(f"no route to {known[0]}")
        except OSError as error:
            if spectrum.spectrum_pk % 2:
                raise ValueError(f"cannot connect: {known}") from error
        yield Measured.from_spectrum(spectrum, value=1.0)


@task
def broken(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Never]:
    """Raises outside of any row: the element is broken, and says why."""
    raise RuntimeError(f"cannot connect to {url()}, {os.environ.get('PGPASSWORD')}")
    yield from spectra
