"""What was stored is printed: as a table, as CSV, and as JSON."""

import csv
import io
import json
from collections.abc import Iterable
from decimal import Decimal
from uuid import UUID

import numpy as np
import pytest
from click.testing import CliRunner
from peewee import BooleanField, UUIDField

from astra import task
from astra.api import run_here
from astra.cli.group import main
from astra.database.connection import connection
from astra.errors import DatabaseError, TaskError
from astra.fields import ArrayField
from astra.models import BossVisitSpectrum, PipelineOutputModel
from astra.plan.plan import create_plan
from astra.status import results as module
from astra.status.results import StoredResults, json_value
from tests.sample_tasks import Measured, fill, measure

TASK = "tests.sample_tasks.measure"


def astra(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def ran(n: int, **arguments) -> None:
    fill(n)
    run_here(create_plan(measure, BossVisitSpectrum, arguments=arguments)[0].plan)


def test_results_are_printed_in_all_forms(url, monkeypatch):
    assert "has stored no result" in astra("results", TASK).output
    assert json.loads(astra("results", TASK, "--json").stdout) == []
    monkeypatch.setattr(module, "CHUNK", 10)
    ran(25, raise_every=5)
    rows = json.loads(astra("results", TASK, "--json").stdout)
    wanted = [key for key in range(1, 26) if key % 5]
    assert sorted(row["spectrum_pk"] for row in rows) == wanted
    assert all(row["value"] == row["spectrum_pk"] / 2 for row in rows)
    assert [row["task_pk"] for row in rows] == sorted(row["task_pk"] for row in rows)
    read = list(csv.DictReader(io.StringIO(astra("results", TASK, "--csv").stdout)))
    assert [float(row["value"]) for row in read] == [row["value"] for row in rows]
    assert list(read[0]) == list(rows[0]) and set(read[0]) == set(Measured._meta.columns)
    assert read[0]["text"] == "" and rows[0]["text"] is None
    shown = astra("results", TASK, "--limit", "3").output.splitlines()
    assert len(shown) == 4 and shown[0].split() == [
        "spectrum_pk", "source_pk", "value", "number", "modified"
    ]  # fmt: skip
    assert len(json.loads(astra("results", TASK, "--json", "--limit", "3").stdout)) == 3
    fill(30)
    run_here(create_plan(measure, BossVisitSpectrum)[0].plan)
    assert "and more (--limit N" in astra("results", TASK).output


def test_results_of_chosen_keys_are_printed(url, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2)
    ran(6)
    rows = astra("results", TASK, "--json", "--keys", "5,3,99,4")
    assert {row["spectrum_pk"] for row in json.loads(rows.stdout)} == {3, 4, 5}
    assert rows.stderr == "1 key without a result: 99\n"
    (tmp_path / "keys.txt").write_text("\ufeff5\r\n\n 3 \n5\n", encoding="utf-8")
    rows = json.loads(astra("results", TASK, "--json", "--keys", "keys.txt").stdout)
    assert {row["spectrum_pk"] for row in rows} == {3, 5}
    assert "no result for these keys" in astra("results", TASK, "--keys", "7").output
    for wrong in ("x", "1.5", str(2**63), "5;6"):
        done = astra("results", TASK, "--keys", wrong)
        assert done.exit_code == 2 and "is not a key (spectrum_pk)" in done.output, wrong


def test_what_cannot_be_meant_is_refused(url, tmp_path):
    assert astra("results", "no.such").exit_code == 2
    assert astra("results", TASK, "--csv", "--json").exit_code == 2
    assert astra("results", TASK, "--input-model", "Source").exit_code == 2
    with pytest.raises(TaskError, match="give an iterable"):
        StoredResults(measure, "5")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    done = astra("results", TASK, "--keys", "binary")
    assert done.exit_code == 2 and "cannot be read as text" in done.output
    with connection(), pytest.raises(DatabaseError, match="no column 'small'"):
        Measured._meta.database.execute_sql('ALTER TABLE "measured" DROP COLUMN "small"')
        StoredResults(measure)


class Shaped(PipelineOutputModel):
    flux = ArrayField(null=True)
    good = BooleanField()
    uid = UUIDField()


@task
def shaped(spectra: Iterable[BossVisitSpectrum]) -> Iterable[Shaped]:
    for number, spectrum in enumerate(spectra):
        flux = np.arange(6, dtype=np.float32).reshape(2, 3) if number else None
        yield Shaped.from_spectrum(spectrum, flux=flux, good=bool(number), uid=UUID(int=number))


def test_arrays_flags_and_uuids_are_printed(sqlite_url):
    Shaped.create_table()
    fill(2)
    run_here(create_plan(shaped)[0].plan)
    shown = astra("results", f"{__name__}.shaped").stdout
    header, *lines = [line.split("  ") for line in shown.splitlines()]
    assert [name.strip() for name in header if name][2:5] == ["flux", "good", "uid"]
    assert "array (2, 3)" in [cell.strip() for cell in lines[1]] and "array" not in lines[0]
    read = list(csv.DictReader(io.StringIO(astra("results", f"{__name__}.shaped", "--csv").stdout)))
    assert [row["flux"] for row in read] == ["", "[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]"]
    assert [row["good"] for row in read] == ["false", "true"]
    assert [UUID(row["uid"]).int for row in read] == [0, 1]


def test_values_have_a_form_in_json():
    values = {
        "array": np.array([1.0, np.nan]), "bytes": b"\x01\xff", "nan": float("nan"),
        "number": np.float32(0.5), "whole": np.int64(3), "exact": Decimal("1.10"),
    }  # fmt: skip
    assert json_value(values) == {
        "array": [1.0, None], "bytes": "01ff", "nan": None, "number": 0.5, "whole": 3,
        "exact": "1.10",
    }  # fmt: skip
