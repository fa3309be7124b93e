"""The statements that have the same text in both dialects, by name.

A ``{name}`` is replaced by a quoted identifier or a fragment of SQL (``str.format``).
"""

ADD_COLUMN = "ALTER TABLE {table} ADD COLUMN {column}{default}"

#: For a row that has a result already: the one whose input was read later is kept.
ON_CONFLICT = """
    ON CONFLICT ({target}) {where}
    DO UPDATE SET {columns}, "modified" = {now}
    WHERE stored."input_read" IS NULL OR excluded."input_read" >= stored."input_read" """

DROP_VIEW = "DROP VIEW IF EXISTS {view}"

CREATE_VIEW = "{create} {view} AS SELECT stored.* FROM {table} AS stored WHERE {condition}"

#: A condition: no later version has a result for the same row.
IS_CURRENT = """
    NOT EXISTS (SELECT 1 FROM {table} AS later WHERE {same_row}
                AND later.v_astra_major_minor > stored.v_astra_major_minor)"""
