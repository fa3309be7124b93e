"""Public names have docstrings with types, units, errors and an example that runs."""

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from numpydoc.docscrape import NumpyDocString
from sphinx.pycode import ModuleAnalyzer

from tests.conftest import ROOT
from tests.examples import public_names

NAMES = dict(public_names())


def parsed(doc: str) -> NumpyDocString:
    return NumpyDocString(inspect.cleandoc(doc))


def missing(doc: NumpyDocString, parameters: set[str]) -> list[str]:
    """What a function's docstring does not say."""
    described = {name.strip(" *"): p for p in doc["Parameters"] for name in p.name.split(",")}
    lacks = [section for section in ("Summary", "Raises", "Examples") if not doc[section]]
    if not (doc["Returns"] or doc["Yields"]):
        lacks.append("Returns")
    for name in sorted(parameters - described.keys()):
        lacks.append(f"parameter {name}")
    for name, parameter in described.items():
        text = " ".join(parameter.desc)
        if not parameter.type or not text:
            lacks.append(f"type or meaning of {name}")
        is_quantity = re.search(r"_(s|mb)$", name) or "float" in parameter.type
        if is_quantity and "[" not in text:
            lacks.append(f"unit of {name}")
    return lacks


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_says_what_it_takes_gives_and_raises(name):
    thing = NAMES[name]
    doc = parsed(thing.__doc__)
    if inspect.isfunction(thing):
        assert missing(doc, set(inspect.signature(thing).parameters)) == []
    else:
        assert doc["Summary"] and doc["Examples"]


@pytest.mark.parametrize(
    "name", [name for name, thing in NAMES.items() if dataclasses.is_dataclass(thing)]
)
def test_each_field_of_what_is_returned_is_explained(name):
    kind = NAMES[name]
    described = ModuleAnalyzer.for_module(kind.__module__)
    described.analyze()
    for field in dataclasses.fields(kind):
        text = described.attr_docs.get(
            (kind.__name__, field.name), parsed(kind.__doc__)["Parameters"]
        )
        assert text, f"{name}.{field.name} has no comment that begins with #:"
        if field.name.endswith(("_s", "_mb")):
            assert "[" in " ".join(text), f"{name}.{field.name} has no unit"


def test_what_airflow_runs_is_explained_too():
    """Airflow is not installed beside the other tests: its module is read, not imported."""
    tree = ast.parse((ROOT / "astra" / "airflow.py").read_text())
    kinds = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    public = [node for node in kinds if not node.name.startswith("_")]
    assert len(public) == 3
    for node in public:
        doc = parsed(ast.get_docstring(node))
        assert set(missing(doc, set())) <= {"Returns"}, node.name


def test_the_examples_run(tmp_path: Path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ASTRA_DATABASE_URL": f"sqlite:///{tmp_path}/astra.db",
        "ASTRA_RUN_DIR": str(tmp_path / "runs"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.examples"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
