"""Rows that are packed into the binary format of COPY are read back as they were."""

from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra.database import binary_copy
from astra.database.connection import connection, database

_TYPES = {"number": "int8", "flag": "bool", "short": "text", "word": "text", "data": "bytea"}

_CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])

_ROW = st.tuples(
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.booleans(),
    st.none() | st.sampled_from(["", "é"]),  # often of one length in all rows
    st.none() | st.text(_CHARACTERS, max_size=40),
    st.none() | st.binary(max_size=4),
)


@pytest.mark.postgres
@given(rows=st.lists(_ROW, min_size=1, max_size=8), backwards=st.booleans())
def test_any_rows_are_copied_in_any_order(pg_url, rows, backwards):
    columns = dict(zip(_TYPES, zip(*rows, strict=True), strict=True))
    packed = {name: binary_copy.pack(_TYPES[name], values) for name, values in columns.items()}
    order = list(range(len(rows)))[:: -1 if backwards else 1]
    names, data = binary_copy.rows(packed, order)
    declared = ", ".join(f"{name} {kind}" for name, kind in _TYPES.items())
    with connection():
        database.execute_sql(f"CREATE TEMPORARY TABLE copied ({declared})")
        with database.cursor() as cursor:
            columns_of_copy = ", ".join(names)
            cursor.copy_expert(
                f"COPY copied ({columns_of_copy}) FROM STDIN (FORMAT binary)", BytesIO(data)
            )
            cursor.execute(f"SELECT {', '.join(_TYPES)} FROM copied")
            stored = [
                tuple(bytes(v) if isinstance(v, memoryview) else v for v in row)
                for row in cursor.fetchall()
            ]
        database.execute_sql("DROP TABLE copied")
    assert stored == [rows[place] for place in order]
