"""What the published package's users begin with: names, and a module that runs as it is."""

import json
import logging
import sys
from collections.abc import Iterable

import numpy as np
import peewee
import pytest
from click.testing import CliRunner
from peewee import SQL, FloatField, IntegerField

from astra import generate_queries_for_task, task, utils
from astra.api import run_here
from astra.cli.group import main
from astra.database.connection import connection, dialect, reset
from astra.errors import DatabaseError, TaskError, UsageError
from astra.fields import BitField, PixelArray
from astra.glossary import Glossary, describe
from astra.models import (
    BossCombinedSpectrum,
    BossVisitSpectrum,
    PipelineOutputModel,
    Source,
    Spectrum,
)
from astra.models.apogee import ApogeeVisitSpectrumInApStar
from astra.models.base import BaseModel
from astra.plan.plan import create_plan
from astra.status.verify import verify
from tests.conftest import ROOT
from tests.pages import blocks, commands
from tests.published_tasks import LineWidth, line_width
from tests.sample_tasks import Measured, fill


def in_a_plan():
    (planned,) = create_plan("tests.published_tasks.line_width")
    run_here(planned.plan)


def directly():
    results = list(line_width(BossVisitSpectrum.select()))
    assert all(result.task_pk for result in results)


def run_command():
    with pytest.raises(SystemExit) as end:
        main.main(["run", "tests.published_tasks.line_width"])
    assert end.value.code == 0


@pytest.mark.parametrize("way", [directly, run_command, in_a_plan])
def test_a_published_module_runs_as_it_is(url, way):
    LineWidth.create_table()
    fill(5)
    way()
    with connection():
        rows = list(LineWidth.select().order_by(LineWidth.spectrum_pk))
        assert [(row.spectrum_pk, row.width) for row in rows] == [
            (k, float(k)) for k in range(1, 6)
        ]
        assert [row.flag_noisy for row in rows] == [False, True, False, False, False]
        assert rows[0].model_flux.tolist() == [1, 1, 1] and rows[0].source_pk == 1
        assert not list(LineWidth.lacking_indexes())
    assert create_plan(line_width)[0].plan is None


def test_descriptions_are_found_by_name():
    assert LineWidth.teff.help_text == Glossary.teff == "effective temperature [K]"
    assert LineWidth.e_teff.help_text == "uncertainty of effective temperature [K]"
    assert LineWidth.width.help_text == "of the line [Angstrom]"
    assert describe("raw_e_teff") == "raw uncertainty of effective temperature [K]"
    assert Glossary.raw_logg == "raw " + Glossary.logg
    assert Glossary.nothing_like_it is None and describe("e_nothing") is None
    assert Source.e_plx.help_text == "uncertainty of parallax [mas]"


def test_flags_have_descriptions_and_bits():
    class Flagged(peewee.Model):
        flags = BitField()
        one = flags.flag(help_text="first")
        eighth = flags.flag(2**3, help_text="named by its value")
        last = flags.flag()

    row = Flagged(eighth=True, last=True)
    assert row.flags == 2**3 + 2**4 and not row.one
    assert (Flagged.one.help_text, Flagged.last.help_text) == ("first", None)


class Extracted(BaseModel):
    path = peewee.TextField()
    flux = PixelArray(ext=1, column_name="FLUX", transform=np.sqrt)
    by_name = PixelArray(ext="COADD", column_name="FLUX")
    no_column = PixelArray(ext=1)
    no_table = PixelArray(ext="NONE", column_name="FLUX")
    plain = PixelArray(ext=1, accessor_class=peewee.FieldAccessor)

    class Meta:
        table_name = "extracted_of_published"


def test_pixels_are_read_from_the_file_of_a_row(url, tmp_path, monkeypatch):
    fits = pytest.importorskip("astropy.io.fits")
    column = fits.Column("FLUX", "D", array=np.array([1.0, 4.0]))
    fits.BinTableHDU.from_columns([column], name="COADD").writeto(tmp_path / "one.fits")
    monkeypatch.setenv("SPECTRA", str(tmp_path))
    Extracted.create_table()
    with connection():
        Extracted.create(path="$SPECTRA/one.fits")
        row = Extracted.get()
        assert row.flux.tolist() == [1, 2] and row.by_name.tolist() == [1, 4]
        assert row.plain is None
        for name in ("no_column", "no_table"):
            with pytest.raises(UsageError, match=f"which Extracted.{name} is read from"):
                getattr(row, name)
        row.flux = np.zeros(2)
        row.save()
        assert Extracted.get().flux.tolist() == [0, 0]


def test_errors_of_the_flux_and_kinds_of_spectra_are_those_of_the_published_package(url):
    spectrum = BossVisitSpectrum(ivar=np.array([4.0, 0.0, -1.0]), flux=np.ones(3))
    assert spectrum.e_flux.tolist() == [0.5, np.inf, np.inf]
    assert BossVisitSpectrum().e_flux is None
    with connection():
        assert Spectrum.create().kind == ""
        ApogeeVisitSpectrumInApStar.create(mjd=60000, drp_spectrum_pk=2**40)
        assert Spectrum.get(Spectrum.kind == "apogee_visit_spectrum_in_ap_star")


def test_published_helper_functions_do_what_they_did(tmp_path, monkeypatch):
    monkeypatch.setenv("HERE", "there")
    assert utils.expand_path("~/$HERE/x") == f"{tmp_path}/there/x"
    assert utils.log is logging.getLogger("astra")
    assert utils.version_string_to_integer("12.3.45") == 12_003_045
    assert utils.version_integer_to_string(12_003_045) == "12.3.45"
    assert utils.flatten([1, [2, (3, {"a": [4]})], "five"]) == [1, 2, 3, 4, "five"]
    assert utils.flatten("one") == ["one"] and utils.flatten([]) == []
    rows = [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    columns = {"a": [1, 3], "b": [2, 4]}
    assert utils.list_to_dict(rows) == columns and utils.dict_to_list(columns) == rows
    assert utils.list_to_dict([]) == {} and utils.dict_to_list({}) == []
    with pytest.raises(ValueError, match="different keys"):
        utils.list_to_dict([{"a": 1}, {"b": 1}])
    assert utils.executable("os.path.join") is utils.executable(__import__("os").path.join)
    with pytest.raises(TypeError, match="cannot be called"):
        utils.executable("os.sep")


def test_a_timer_gives_each_item_its_time(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(utils, "perf_counter", lambda: float(next(now)))
    rows = [LineWidth(), LineWidth()]
    called = []
    with utils.Timer(rows, 1, lambda: called.append(1), "t_elapsed", "t_overhead") as timer:
        for _ in timer:
            before = timer.elapsed
            with timer.pause():
                next(now)
            assert timer.elapsed - before == 2  # of looking at the clock, not of the pause
    assert [row.t_elapsed for row in rows] == [1, 1] and rows[0].t_overhead == rows[1].t_overhead
    assert len(called) == 2


def test_catalogue_identifiers_have_64_bits(url):
    big = 27021600491023544
    names = ("sdss_id", "catalogid", "catalogid21", "catalogid25", "catalogid31")
    names += ("gaia_dr2_source_id", "gaia_dr3_source_id", "tic_v8_id")
    with connection():
        Source.create(**dict.fromkeys(names, big))
        row = Source.get(Source.catalogid == big)
        assert {getattr(row, name) for name in names} == {big}
        BossVisitSpectrum.create(catalogid=big)
        assert BossVisitSpectrum.get().catalogid == big


class Grown(PipelineOutputModel):
    value = FloatField(null=True)
    weight = IntegerField(constraints=[SQL("DEFAULT 3")])

    class Meta:
        table_name = "grown_of_published"


class Required(PipelineOutputModel):
    value = FloatField()

    class Meta:
        table_name = "required_of_published"


def test_defaults_of_the_database_are_used_and_added(url):
    with connection():
        Grown.create_table()
        table = dialect().table(Grown)
        dialect().run(f"ALTER TABLE {table} DROP COLUMN weight")
        if dialect().name == "postgresql":  # SQLite keeps a column that an index needs
            dialect().run(f"ALTER TABLE {table} DROP COLUMN result_number CASCADE")
        dialect().run(f"INSERT INTO {table} (spectrum_pk, v_astra, tag) VALUES (1, 8001, '')")
        Grown.create_table()
        dialect().run(f"INSERT INTO {table} (spectrum_pk, v_astra, tag) VALUES (2, 8001, '')")
        assert [row.weight for row in Grown.select()] == [3, 3]
        assert {row.result_number for row in Grown.select()} == {0}
        assert not list(Grown.lacking_indexes())


def test_a_default_that_a_table_was_made_without_is_added(pg_url):
    with connection():
        Grown.create_table()
        table = dialect().table(Grown)
        dialect().run(f"ALTER TABLE {table} ALTER weight DROP DEFAULT, ALTER created DROP DEFAULT")
        Grown.create_table()
        dialect().run(f"INSERT INTO {table} (spectrum_pk, v_astra, tag) VALUES (1, 8001, '')")
        assert Grown.get().weight == 3 and Grown.get().created is not None


def test_a_column_without_any_default_is_refused(url):
    with connection():
        Required.create_table()
        dialect().run(f"ALTER TABLE {dialect().table(Required)} DROP COLUMN value")
        with pytest.raises(DatabaseError, match="null=True or a default"):
            Required.create_table()


def astra(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@task
def unannotated(spectra, value: float = 1.0) -> Iterable[Measured]:
    for spectrum in spectra:
        yield Measured.from_spectrum(spectrum, value=value)


@pytest.mark.parametrize(
    "name",
    ["boss.BossVisitSpectrum", "BossVisitSpectrum", "boss_visit_spectrum", BossVisitSpectrum,
     "astra.models.boss.BossVisitSpectrum", "astra.models.boss:BossVisitSpectrum"],
)  # fmt: skip
def test_rows_without_annotation_are_of_the_model_that_is_named(sqlite_url, name):
    fill(3)
    for function in (unannotated, line_width):
        ((model, query),) = generate_queries_for_task(function, name)
        assert model is BossVisitSpectrum and query.count() == 3
    if name == "boss.BossVisitSpectrum":
        (planned,) = create_plan(unannotated, name, limit=2)
        run_here(planned.plan)
        assert Measured.select().count() == 3 and verify(planned.plan).sound
        with pytest.raises(TaskError, match="--input-model boss"):
            create_plan(unannotated)


def test_another_model_with_the_same_columns_is_refused_with_the_reason():
    class SameColumns(BossVisitSpectrum):
        class Meta:
            table_name = "same_columns"
            abstract = True

    for wanted in (SameColumns, "SameColumns", "mwm.ApogeeCombinedSpectrum"):
        with pytest.raises(TaskError, match=r"has the same columns; .* Iterable\[BossVisit\w+ \|"):
            generate_queries_for_task(line_width, wanted)
    with pytest.raises(TaskError, match="Did you mean 'BossVisitSpectrum'"):
        generate_queries_for_task(line_width, "BossVisitSpectrun")


@pytest.mark.parametrize(
    "words, said",
    [
        ("srun width --nodes 2", "astra submit TASK"),
        ("version", "astra --version"),
        ("migrate boss", "astra initdb"),
        ("run w BossVisitSpectrum 1 2 3", "astra run w --input-model BossVisitSpectrum --sdss-ids 1,2,3"),
        ("plan w 5 --limit 3", "astra plan w --sdss-ids 5"),
        ("submit w boss.BossVisitSpectrum", "astra submit w --input-model boss.BossVisitSpectrum"),
    ],
)  # fmt: skip
def test_commands_of_the_published_package_are_answered_with_those_here(words, said):
    done = astra(*words.split())
    assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output


def test_limits_of_rows_and_pages(sqlite_url):
    fill(8)
    fill(3, BossCombinedSpectrum)
    name = "tests.sample_tasks.measure"
    assert astra("run", name, "--limit", 3).exit_code == 0
    assert Measured.select().count() == 3
    assert astra("run", name, "--limit", 7, "--page-size", 2).exit_code == 0
    assert Measured.select().count() == 10
    for option in ("--page-size", "--limit"):
        done = astra("plan", "tests.published_tasks.line_width", option, 3, "--json")
        assert (done.exit_code, json.loads(done.stdout)["pages"]) == (0, 3)
        assert astra("cancel", json.loads(done.stdout)["plan"]).exit_code == 0


def test_the_variable_that_is_ignored_is_named_once(sqlite_url, monkeypatch, capfd):
    reset()
    monkeypatch.setenv("ASTRA_DATABASE_PATH", "/data/astra.db")
    for _ in range(2):
        with connection():
            assert Source.select().count() == 0
    said = capfd.readouterr().err
    assert said.count("ASTRA_DATABASE_PATH=/data/astra.db is IGNORED") == 1
    assert "sqlite:////data/astra.db" in said


def test_the_page_runs_as_it_is_written(sqlite_url, tmp_path, monkeypatch):
    page = ROOT / "docs" / "from-the-published-package.md"
    (tmp_path / "widths.py").write_text(blocks(page, "python")[0])
    monkeypatch.syspath_prepend(tmp_path)
    fill(3)
    for _, *words in commands(page):
        done = astra(*words)
        assert done.exit_code == 0, (words, done.output)
    with connection():
        width = sys.modules["widths"].Width
        assert [(row.width, row.flag_noisy) for row in width.select()] == [(1.0, True)] * 3
