"""The operator and the sensor for Airflow, in an Airflow of their own with its standalone database.

Airflow is heavy: it is in a folder of its own, which ``./setup airflow`` makes and ``./setup tests``
too; where it is not there, this is skipped.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from astra.states import PlanState
from astra.status.status import status
from tests.conftest import ROOT
from tests.sample_tasks import Measured, fill

PYTHON = Path(os.environ.get("ASTRA_AIRFLOW", ROOT / ".venv-airflow")) / "bin" / "python"

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.postgres,
    pytest.mark.skipif(not PYTHON.exists(), reason="Airflow is not installed: ./setup airflow"),
]

_DAG = """
import json, sys
from airflow.sdk import DAG
from astra.airflow import AstraPlanSensor, AstraSubmitOperator

with DAG("night") as dag:
    submit = AstraSubmitOperator(
        task_id="submit", astra_task=sys.argv[1], profile="debug",
        options={"mem": "300M"},
        planning={"input_model": "BossVisitSpectrum", "limit": 10, "arguments": json.loads(sys.argv[2])},
    )
    whole = AstraPlanSensor(task_id="whole", plans=submit.output, poke_interval=1)

if __name__ == "__main__":
    run = dag.test()
    states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
    print("ENDED", json.dumps(states))
"""


@pytest.fixture
def airflow(slurm, tmp_path, monkeypatch) -> Path:
    """A folder of Airflow's, with its database (SQLite) and the workflow."""
    for name, value in {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "night.py").write_text(_DAG)
    subprocess.run(
        [PYTHON.with_name("airflow"), "db", "migrate"], check=True, capture_output=True, text=True
    )
    return tmp_path / "dags" / "night.py"


def run(workflow: Path, task: str, **arguments) -> str:
    words = [PYTHON, workflow, task, json.dumps(arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_a_workflow_submits_and_waits(airflow):
    fill(30)
    said = run(
        airflow, "tests.sample_tasks.measure", row_s=0.2
    )  # so that the sensor has to be deferred
    assert '{"submit": "success", "whole": "success"}' in said, said[-5000:]
    assert "deferr" in said.lower() and Measured.select().count() == 30
    assert status(1).state is PlanState.WHOLE
    # Where nothing is pending, nothing is submitted, and nothing is waited for.
    assert '"whole": "success"' in run(airflow, "tests.sample_tasks.measure")
    # What is not whole fails the sensor, with what to type.
    fill(10)
    said = run(airflow, "tests.sample_tasks.broken")
    assert '"whole": "failed"' in said and "fix it, then astra resume" in said, said[-5000:]
