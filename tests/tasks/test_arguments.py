"""Arguments of tasks: by place, by --set, from Python; read back in the element as they were."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import numpy as np
import pytest

from astra import task
from astra.api import run_here
from astra.errors import TaskError, UsageError
from astra.models import BossVisitSpectrum
from astra.models.plans import Plan
from astra.plan.plan import create_plan
from astra.tasks.arguments import parse_arguments
from tests.sample_tasks import Measured, echo, fill, measure, own_batches


@task
def many(
    spectra: Iterable[BossVisitSpectrum],
    /,
    whole: int = 0,
    real: float = 0,
    truth: bool = False,
    text: str = "",
    maybe: Optional[str] = None,  # noqa: UP045
    old_style: int = None,  # noqa: RUF013
    path: Path = Path("."),
    maybe_path: Path | None = None,
    either: Union[int, str] = 0,  # noqa: UP007
    choice: Literal[1, "a", True] = 1,
    listed: list[int] = (),
    sequence: Sequence[float] = (),
    iterable: Iterable[int] = (),
    frozen: frozenset[int] = frozenset(),
    some: set[int] = frozenset(),
    pair: tuple[int, str] = (1, "a"),
    row: tuple[int, ...] = (),
    nested: list[list[int]] = (),
    document: dict = {},  # noqa: B006
    weights: Mapping[int, float] = {},
    noted: Annotated[int, "pixels"] = 0,
    bare=3,
    unsaid=None,
    array: np.ndarray = None,
    anything: Any = None,
    **more: float,
) -> Iterable[Measured]:
    yield from ()


GOOD = [
    ("whole", "-3", -3), ("whole", " 1000", 1000), ("real", "-1e3", -1000.0), ("real", "inf", float("inf")),
    ("truth", "True", True), ("text", "123", "123"), ("maybe", "none", None), ("maybe", "123", "123"), ("maybe", " null", " null"),
    ("old_style", "none", None), ("old_style", "4", 4), ("path", "/tmp/x", Path("/tmp/x")),
    ("maybe_path", "none", None), ("maybe_path", "/x", Path("/x")), ("either", "7", 7),
    ("either", "007", "007"), ("either", "1.5", "1.5"), ("choice", "1", 1), ("choice", "a", "a"),
    ("listed", "[1, 2]", [1, 2]), ("listed", "[]", []), ("text", '"a"', '"a"'), ("text", "null", "null"),
    ("sequence", "[1,2.5]", [1.0, 2.5]), ("iterable", "[1,2]", [1, 2]), ("frozen", "[1,1,2]", frozenset({1, 2})),
    ("some", "[2,1]", {1, 2}), ("pair", '[1,"x"]', (1, "x")), ("row", "[1,2,3]", (1, 2, 3)),
    ("nested", "[[1, 2], [3]]", [[1, 2], [3]]), ("document", '{"a": [1]}', {"a": [1]}),
    ("weights", '{"1": 2}', {1: 2.0}), ("noted", "5", 5), ("bare", "4", 4), ("anything", "4", 4),
    ("unsaid", "x", "x"),
    ("extra", "2.5", 2.5), ("more", "1", 1.0), ("batch_size", "7", 7), ("write_frequency", "7", 7.0),
]  # fmt: skip

BAD = [
    ("whole", "3.0", "a whole number"), ("whole", "inf", "a whole number"), ("real", "1,5", "a number"),
    ("truth", "on", "true or false"), ("listed", '[1,"x"]', "a whole number"), ("listed", "[1, ", "JSON"),
    ("listed", "[true]", "whole number"), ("pair", "[1]", "2 members, not 1"), ("pair", '["x",1]', "a whole number"),
    ("nested", "1,2", "JSON"), ("nested", "[1]", "list"), ("document", "[1]", "dict"), ("document", "a", "JSON"),
    ("choice", "b", "choose from 1, a, True"), ("array", "1", "cannot be stored"),
    ("spectra", "1", "takes no argument 'spectra'"), ("extra", "x", "a number"), ("batch_size", "0", "batch_size=0"),
    ("sequence", f"[1{'0' * 400}]", "is not a number"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_texts_are_parsed_by_annotation_and_survive_the_plan(name, text, value):
    found = parse_arguments(many, {name: text})[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(("name", "text", "words"), BAD)
def test_texts_that_cannot_be_parsed_are_refused(name, text, words):
    with pytest.raises(TaskError, match=words):
        parse_arguments(many, {name: text})


def test_values_of_python_are_converted_or_refused():
    given = {
        "whole": np.int64(3), "real": np.float32(2), "truth": np.bool_(True), "path": Path("/x"),
        "some": {2, 1}, "sequence": np.array([1.0, 2.0]), "listed": range(3), "weights": {1: 2},
        "maybe_path": Path("/y"), "anything": np.float64(1.5), "real2": np.int32(4),
        "bare": np.arange(2), "unsaid": {"x": (1, np.arange(2))}, "noted": 3,
    }  # fmt: skip
    assert parse_arguments(many, given) == {
        "whole": 3, "real": 2.0, "truth": True, "path": Path("/x"), "some": {1, 2},
        "sequence": [1.0, 2.0], "listed": [0, 1, 2], "weights": {1: 2.0}, "maybe_path": Path("/y"),
        "anything": 1.5, "real2": 4.0, "bare": [0, 1], "unsaid": {"x": [1, [0, 1]]}, "noted": 3,
    }  # fmt: skip
    for name, value in {
        "real": [1], "whole": 1.5, "anything": object(), "text": b"x", "document": {1: 2},
        "array": np.arange(3), "unsaid": Path("/x"), "frozen": 5, "pair": (1,), "whole2": True,
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=name):
            parse_arguments(many, {name: value})


def test_the_element_gets_the_annotated_types(sqlite_url):
    fill(1)
    texts = {"path": "/tmp/x", "pair": '[1,"x"]', "some": "[3,3]", "either": "007", "extra": "1.5"}
    run_here(create_plan(echo, arguments=texts)[0].plan)
    assert Measured.get().text == repr(
        [Path("/tmp/x"), (1, "x"), frozenset({3}), "007", {"extra": 1.5}]
    )
    with pytest.raises(UsageError):
        create_plan(echo, arguments={"path": object()}, again=True)
    assert Plan.select().count() == 1


def test_an_own_parameter_named_like_a_keyword_is_given_by_place(sqlite_url):
    fill(3)
    got = []

    @task(write_frequency=9)
    def analysis(spectra, batch_size=3, other=0):
        got.append((batch_size, other))
        yield from ()

    rows = list(BossVisitSpectrum.select())
    list(analysis(rows, 7))
    list(analysis(rows, 7, 1))
    list(analysis(rows, other=2))
    assert got == [(7, 0), (7, 1), (3, 2)]
    with pytest.raises(TaskError, match="batch_size=0"):
        analysis(rows, 0)
    with pytest.raises(TaskError, match="multiple values"):
        analysis(rows, 7, batch_size=8)


def test_in_a_plan_the_tasks_own_values_beat_the_configuration(sqlite_url, tmp_path):
    fill(4)
    (tmp_path / "astra.toml").write_text("[element]\nbatch_size = 77\nwrite_frequency = 5\n")
    from astra.config import settings

    settings.reset()
    run_here(create_plan(own_batches)[0].plan)
    assert [m.text for m in Measured.select()] == ["2 9.0"] * 4
    Measured.delete().execute()
    run_here(create_plan(own_batches, arguments={"batch_size": 5})[0].plan)
    assert [m.text for m in Measured.select()] == ["5 9.0"] * 4


def test_a_number_of_thousands_of_digits_is_refused(sqlite_url):
    fill(1)
    with pytest.raises(TaskError, match=r"raise_every cannot be stored with a plan: .*4300 digits"):
        create_plan(measure, BossVisitSpectrum, arguments={"raise_every": 10**5000})
    with pytest.raises(TaskError, match=r"cannot be stored with its results: .*4300 digits"):
        list(measure(BossVisitSpectrum.select(), raise_every=10**5000))
