"""Statements are written once for each database, and executed with any values."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra.database.connection import bind, connection
from astra.database.statements import statement
from astra.models.attempts import Exclusion

_made: list[str] = []


@statement
def _insert(**values: Any) -> Any:
    _made.append("insert")
    return Exclusion.insert(values).returning(Exclusion.pk)


@statement
def _reasons(node: Any) -> Any:
    _made.append("select")
    return Exclusion.select(Exclusion.reason).where(Exclusion.node == node)


@pytest.fixture(autouse=True)
def _forget_calls():
    _made.clear()


def test_a_statement_is_written_once_for_each_database(url):
    with connection():
        for number in range(3):
            (pk,) = _insert(node=f"n{number}", reason=str(number), until="2026-01-01")
            assert pk == (number + 1,) and _reasons(node=f"n{number}") == [(str(number),)]
        assert _made == ["insert", "select"]
        assert _reasons(node="nowhere") == []
    bind()
    with connection():
        assert _reasons(node="n2") == [("2",)]  # an UPDATE or INSERT is done when it returns
    assert _made == ["insert", "select", "select"]


@settings(max_examples=40)
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_text_is_a_value_and_never_a_part_of_the_statement(url, text):
    with connection():
        Exclusion.delete().execute()
        _insert(node=text, reason=f"%s ? {text}", until="2026-01-01")
        assert _reasons(node=text) == [(f"%s ? {text}",)]
