"""Conditions on the columns of the input: what is taken, what is refused, and what it means."""

from datetime import UTC, date, datetime
from uuid import UUID

import peewee
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra.database.connection import connection, database
from astra.errors import TaskError
from astra.models.base import TimeField
from astra.plan.condition import condition


class Observed(peewee.Model):
    n = peewee.IntegerField(null=True)
    big = peewee.BigIntegerField(null=True)
    x = peewee.DoubleField(null=True)
    name = peewee.TextField(null=True)
    good = peewee.BooleanField(null=True)
    day = peewee.DateField(null=True)
    at = peewee.DateTimeField(null=True)
    seen = TimeField(null=True)
    uid = peewee.UUIDField(null=True)
    data = peewee.BlobField(null=True)

    class Meta:
        table_name = "observed_where"
        database = database


ROWS = [
    {"n": n, "big": n * 1000, "x": x, "name": name, "good": n % 2 == 0}
    for n, x, name in [
        (0, 0.0, ""), (1, -1.5, "M31"), (-7, 2.0, "it's; DROP TABLE--"), (900, 1e6, "ключ"),
        (2, 1.0, "%s"), (3, -0.25, "NULL"), (5, 0.5, '"'),
    ]
]  # fmt: skip
DAY = date(2024, 2, 29)
MOMENT = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
UID = UUID(int=7)


@pytest.fixture
def table(url):
    with connection():
        Observed.create_table()
        Observed.insert_many(ROWS).execute()
        yield
        Observed.drop_table()


def taken(text: str) -> set[int]:
    found = Observed.select(Observed.id).where(condition(Observed, text))
    return {pk for (pk,) in found.tuples()}


def each(*parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda found: f"({' '.join(found)})")


def one_of(*texts: str) -> st.SearchStrategy[str]:
    return st.sampled_from(texts)


numbers = one_of("n", "big", "x") | st.integers(-999, 999).map(str) | one_of("0.5", "-2.25", "1e3")
terms = st.recursive(
    numbers,
    lambda inner: (
        each(inner, one_of("+", "-", "*"), inner)
        | each(inner, one_of("/ 3", "/ -0.5"))
        | each(one_of("-", "+"), inner)
        | each(one_of("n", "big", "(n - big)"), one_of("% 7", "% -3"))
    ),
    max_leaves=5,
)
simple = (
    each(terms, one_of("<", "<=", ">", ">=", "==", "!="), terms)
    | each(terms, one_of("<"), terms, one_of("<="), terms)
    | each(one_of("name"), one_of("==", "!="), st.sampled_from([repr(r["name"]) for r in ROWS]))
    | each(
        one_of("n", "x"), one_of("in", "not in"), st.lists(st.integers(-7, 9), min_size=1).map(str)
    )
    | one_of("good", "good == True", "good != False", "name is not None", "x is None")
)
conditions = st.recursive(
    simple,
    lambda inner: each(inner, one_of("and", "or"), inner) | each(one_of("not"), inner),
    max_leaves=6,
)


@settings(max_examples=150)
@given(text=conditions)
def test_it_means_what_it_means_in_python(table, text):
    try:
        found = taken(text)
    except TaskError as error:
        assert "neither is a column" in str(error)
        return
    wanted = {place for place, row in enumerate(ROWS, 1) if eval(text, {}, dict(row))}  # noqa: S307 - it is ours
    assert found == wanted, text


@settings(max_examples=300)
@given(text=st.text(max_size=40) | st.text("nx ()[]=<>'\"\\,.:;+-*/%_1notandriN{}\0", max_size=40))
def test_any_text_is_a_condition_or_refused(sqlite_url, text):
    with connection():
        try:
            found = condition(Observed, text)
        except TaskError as error:
            assert "--where" in str(error)
        else:
            Observed.select().where(found).sql()


def test_times_uuids_and_null_are_compared_as_the_database_does(table):
    Observed.insert(day=DAY, at=MOMENT.replace(tzinfo=None), seen=MOMENT, uid=UID).execute()
    (last,) = [len(ROWS) + 1]
    for text in (
        "day == '2024-02-29'", "day > '2024-02-28' and day < '2024-02-29 00:00:01'",
        "at >= '2024-02-29 12:30'", "at in ['2024-02-29T12:30:00']", "'2024-03-01' > seen",
        "seen == '2024-02-29 13:30+01:00'", f"uid == '{UID}'", f"uid in ['{UID}', '{UUID(int=8)}']",
        "n is None", "day is not None and x is None",
    ):  # fmt: skip
        assert taken(text) == {last}, text
    assert last not in taken("n > 0") | taken("not (n > 0)") | taken("n != 5")
    assert taken("n / (n - n) > 0 or n == 5") == {7}
    assert taken(" n\n> 4 ") == {4, 7}


@pytest.mark.parametrize(
    "text, said",
    [
        ("snr > 10", "has no column 'snr'"),
        ("n > '5'", "cannot be compared"),
        ("name > 5", "`name` (text) cannot be compared with `5` (number)"),
        ("n", "is not a condition"),
        ("n = 5", "write =="),
        ("n == None", "write `is None`"),
        ("n is 5", "only before None"),
        ("n in 5", "write a list"),
        ("n in []", "write a list"),
        ("'M' in name", "write a list"),
        ("n in [1, 'a']", "is not of the type number"),
        ("n & 4", "write `and`"),
        ("day > 'yesterday'", "is not a time"),
        ("uid == 'x'", "is not a UUID"),
        ("uid < uid", "has no order"),
        ("data == 'x'", "(other) cannot be compared"),
        ("x % 2 == 0", "whole numbers"),
        ("n > 1 / 0", "division by zero"),
        ("name + 'x' == 'y'", "not only from numbers"),
        ("n > 10**9", "is not allowed"),
        ("n > 99999999999999999999", "cannot be compared"),
        ("n > 1e999", "cannot be compared"),
        (r"name == '\0'", "cannot be compared"),
        ("name == b'x'", "cannot be compared"),
        ("n.__class__ == 1", "is not allowed"),
        ("__import__('os').system('id')", "is not allowed"),
        ("(lambda: 1)() == n", "is not allowed"),
        ("[n for n in [1]] == n", "is not allowed"),
        ("f'{n}' == name", "is not allowed"),
        ("(n := 5) == 5", "is not allowed"),
        ("n > 1; DROP TABLE plan", "cannot be read"),
        ("1 < 2", "neither is a column"),
        ("", "cannot be read"),
        ("(" * 500 + "n" + ")" * 500, "cannot be read"),
        ("not " * 100 + "good", "levels"),
        ("-" * 5000 + "n > 1", "more than 40 levels"),
        ("n & " + "-" * 2000 + "1", "a part of too many levels: write `and`"),
        ("1 in [1, 2]", "`1` is not a column"),
        ("n > 1 " * 10_000, "at most 20,000"),
        (f"n > {'9' * 5000}", "4300 digits"),
        (f"n > 0x{'f' * 5000}", "4300 digits"),
    ],
)  # fmt: skip
def test_what_is_no_condition_is_refused(sqlite_url, text, said):
    with connection(), pytest.raises(TaskError) as raised:
        condition(Observed, text)
    assert said in str(raised.value) and str(raised.value).startswith("--where")


def test_many_parts_are_taken(table):
    text = " or ".join(f"n == {n}" for n in range(1000))
    assert taken(text) == {place for place, row in enumerate(ROWS, 1) if row["n"] >= 0}
