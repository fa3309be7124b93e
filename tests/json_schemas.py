"""Writes the schemas of --json, from the dataclasses that are printed: astra/schemas/COMMAND.json.

``python -m tests.json_schemas`` after a change of these; a test says when that is due.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from astra.doctor.finding import Finding
from astra.element.trial import Tried
from astra.night.clean import Cleaned
from astra.night.history import NightStatus
from astra.night.nightly import Nightly
from astra.plan.plan import Planned
from astra.plan.sizes import Estimate
from astra.plan.spool import Recovered
from astra.report.report import Report
from astra.resume.cancel import Cancelled
from astra.resume.pause_and_throttle import Control
from astra.status.failures import FailedRow
from astra.status.logs import Log
from astra.status.plans import PlanLine
from astra.status.row_history import RowHistory
from astra.status.status import PlanStatus
from astra.status.verdict import Verdict
from astra.submit.submit import Submitted
from tests.conftest import ROOT

FOLDER = ROOT / "astra" / "schemas"


@dataclass
class Tables:
    database: str
    new: list[str]
    notes: list[str]


@dataclass
class Value:
    key: str
    value: Any
    source: str


@dataclass
class NothingSubmitted:
    """Nothing was pending: no plan was made."""

    plan: None
    task: str
    pages: int
    rows: int
    jobs: list[Any]


#: What each command prints: one where a task reads one table, else a list.
PRINTED: dict[str, Any] = {
    "cancel": Cancelled,
    "clean": Cleaned,
    "config": list[Value],
    "continue": list[Control],
    "doctor": list[Finding],
    "estimate": Estimate | list[Estimate],
    "failures": list[FailedRow],
    "initdb": Tables,
    "logs": list[Log],
    "nightly": Nightly | list[Finding],
    "nights": NightStatus | list[NightStatus] | list[Nightly],
    "pause": list[Control],
    "plan": Planned | list[Planned],
    "plans": list[PlanLine],
    "recover": Recovered,
    "report": Report,
    "results": list[dict[str, Any]],
    "resume": Submitted,
    "retry": Submitted,
    "run": PlanStatus | Planned | list[PlanStatus] | list[Planned],
    "status": PlanStatus | list[PlanStatus],
    "submit": Submitted | NothingSubmitted | list[Submitted | NothingSubmitted],
    "throttle": list[Control],
    "try": list[Tried],
    "verify": Verdict,
    "why": RowHistory,
}


def schema(command: str) -> dict[str, Any]:
    made = _plain(TypeAdapter(PRINTED[command]).json_schema(mode="serialization"))
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"astra {command} --json",
        **made,
    }


def _plain(part: Any) -> Any:
    """A schema without titles and defaults that say nothing: every key is always printed."""
    if isinstance(part, list):
        return [_plain(item) for item in part]
    if not isinstance(part, dict):
        return part
    made = {k: _plain(v) for k, v in part.items() if k != "default"}
    if isinstance(made.get("description"), str):  # of a docstring: what programs need of it
        text = made["description"].split("\n\nExamples\n")[0]
        made["description"] = re.sub(r":\w+:`([^`]+)`", r"\1", text)
    if "properties" in made:
        for value in made["properties"].values():
            value.pop("title", None)
        made["required"] = list(made["properties"])
    return made


def text(command: str) -> str:
    return json.dumps(schema(command), indent=2) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PRINTED:
        (FOLDER / f"{name}.json").write_text(text(name))
    print(f"{len(PRINTED)} schemas in {FOLDER}")
