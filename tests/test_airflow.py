"""The operator and the sensor for Airflow, in an Airflow of their own with its standalone database.

Airflow is heavy: it is in a folder of its own, which ``./setup airflow`` makes and ``./setup tests``
too; where it is not there, this is skipped.
"""

import json
import os
import re
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

_WORKFLOWS = """
import json, sys
from airflow.sdk import DAG
from airflow.utils.db import initdb
from astra.airflow import AstraPlanSensor, AstraSubmitOperator

workflows = []
for n, (task, arguments) in enumerate(json.loads(sys.argv[1])):
    planning = {"input_model": "BossVisitSpectrum", "limit": 10, "arguments": arguments}
    with DAG(f"night_{n}") as dag:
        submit = AstraSubmitOperator(
            task_id="submit", astra_task=task, profile="debug", options={"mem": "300M"}, planning=planning
        )
        AstraPlanSensor(task_id="whole", plans=submit.output, poke_interval=1)
    globals()[f"night_{n}"] = dag
    workflows.append(dag)

if __name__ == "__main__":
    initdb()
    for dag in workflows:
        ended = dag.test().get_task_instances()
        print("ENDED", json.dumps({ti.task_id: str(ti.state) for ti in ended}), flush=True)
"""


@pytest.fixture
def airflow(slurm, tmp_path, monkeypatch) -> Path:
    """A folder of Airflow's, with its database (SQLite) and the workflows."""
    for name, value in {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(tmp_path / "dags"),
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "dags").mkdir()
    (tmp_path / "dags" / "night.py").write_text(_WORKFLOWS)
    return tmp_path / "dags" / "night.py"


def run(file: Path, *workflows: tuple[str, dict[str, float]]) -> list[str]:
    """Run workflows one after the other, in one start of Airflow; what is printed for each."""
    words = [PYTHON, file, json.dumps(workflows)]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    said = re.split(r"(?<=ENDED )(.*)\n", done.stdout)
    assert done.returncode == 0 and len(said) == 2 * len(workflows) + 1, done.stdout[-5000:]
    return ["".join(pair) for pair in zip(said[::2], said[1::2], strict=False)]


def test_a_workflow_submits_and_waits(airflow):
    fill(30)
    slow = ("tests.sample_tasks.measure", {"row_s": 0.2})  # so that the sensor has to be deferred
    whole, nothing, broken = run(airflow, slow, slow, ("tests.sample_tasks.broken", {}))
    assert '{"submit": "success", "whole": "success"}' in whole, whole[-5000:]
    assert "deferr" in whole.lower() and Measured.select().count() == 30
    assert status(1).state is PlanState.WHOLE
    # Where nothing is pending, nothing is submitted, and nothing is waited for.
    assert '"whole": "success"' in nothing and "deferr" not in nothing.lower(), nothing[-5000:]
    # What is not whole fails the sensor, with what to type.
    assert '"whole": "failed"' in broken and "fix it, then astra resume" in broken, broken[-5000:]
