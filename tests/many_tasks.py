"""Tasks of every kind, and of some a row has many results."""

import time
from collections.abc import Iterable

from peewee import FloatField, TextField

from astra import End, task
from astra.models import BossVisitSpectrum, OutputModel, PipelineOutputModel, Source, result_of
from tests.own_tables import LightCurve


class Peak(PipelineOutputModel):
    height = FloatField()


class SpectrumOfSource(PipelineOutputModel):
    height = FloatField()


class SourceAsWhole(PipelineOutputModel):
    height = FloatField()


class OfGroup(PipelineOutputModel):
    height = FloatField()


class Dip(OutputModel):
    light_curve = result_of(LightCurve)
    depth = FloatField()
    text = TextField(null=True)


@task(many=True)
def peaks(spectra: Iterable[BossVisitSpectrum], bad: int = 0, n: int = 3) -> Iterable[Peak]:
    """As many results as the key says, up to `n`; one of the bad row's cannot be stored."""
    for spectrum in spectra:
        for i in range(spectrum.spectrum_pk % (n + 1)):
            height = None if spectrum.spectrum_pk == bad and i == 1 else float(i)
            yield Peak.from_spectrum(spectrum, height=height)


@task(many=True)
def raises(spectra: Iterable[BossVisitSpectrum], bad: int = 2) -> Iterable[Peak]:
    """Raises after the first result of a row: none of them is stored."""
    for spectrum in spectra:
        yield Peak.from_spectrum(spectrum, height=1.0)
        if spectrum.spectrum_pk == bad:
            raise ValueError("after the first of two results")
        yield Peak.from_spectrum(spectrum, height=2.0)


@task(many=True)
def ends(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Peak]:
    """Takes all its rows first, and says itself when each has ended."""
    for spectrum in list(spectra):
        if spectrum.spectrum_pk % 5:
            yield Peak.from_spectrum(spectrum, height=1.0)
            yield Peak.from_spectrum(spectrum, height=2.0)
        yield End(spectrum)


@task(many=True)
def dips(rows: Iterable[LightCurve]) -> Iterable[Dip]:
    for row in rows:
        for i in range(int(row.mag) % 3):
            yield Dip.from_row(row, depth=float(i))


@task
def spectra_of(sources: Iterable[Source], pause_s: float = 0.0) -> Iterable[SpectrumOfSource]:
    """A result for each spectrum of a source."""
    for source in sources:
        time.sleep(pause_s)
        for spectrum in BossVisitSpectrum.select().where(BossVisitSpectrum.source == source.pk):
            yield SpectrumOfSource.from_spectrum(spectrum, height=1.0)


@task
def sources_as_whole(sources: Iterable[Source]) -> Iterable[SourceAsWhole]:
    for source in sources:
        yield SourceAsWhole.from_source(source, height=1.0)


@task(group_by=("source_pk",))
def of_groups(spectra: Iterable[BossVisitSpectrum]) -> Iterable[OfGroup]:
    """Is given one spectrum of a source, and yields a result for each of that source."""
    for spectrum in spectra:
        query = BossVisitSpectrum.select().where(BossVisitSpectrum.source == spectrum.source_pk)
        for other in query if spectrum.source_pk is not None else [spectrum]:
            yield OfGroup.from_spectrum(other, height=1.0)


TASKS = {
    peaks: Peak, ends: Peak, spectra_of: SpectrumOfSource, sources_as_whole: SourceAsWhole,
    of_groups: OfGroup,
}  # fmt: skip
