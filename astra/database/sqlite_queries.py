"""The statements that astra sends to SQLite alone, by name.

A ``{name}`` is replaced by a quoted identifier or a fragment of SQL (``str.format``), a ``?`` by a
parameter. Queries that both dialects understand are written with peewee where they are used.
"""

#: The database's clock, in the form in which times are compared; its last three digits are zero.
NOW = "(strftime('%Y-%m-%d %H:%M:%f', 'now') || '000')"

# -- tables as they are ---------------------------------------------------------------------

JOURNAL_MODE = "PRAGMA journal_mode"

#: Fails where the file cannot be read.
READ_SCHEMA = "SELECT count(*) FROM sqlite_master"

#: The names of all tables, indexes and views.
RELATIONS = "SELECT name FROM sqlite_master"

#: Each column, as :class:`~astra.database.dialect.Column` has it.
COLUMNS = """
    SELECT name, type, "notnull", hidden IN (2, 3), dflt_value IS NOT NULL
    FROM pragma_table_xinfo(?)"""

KEY_COLUMNS = 'SELECT name, type, "notnull", pk FROM pragma_table_info(?)'

PRIMARY_COLUMNS = "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk"

INDEXES = "SELECT name FROM pragma_index_list(?)"

#: The unique indexes of a table: name, whether each has a condition, and its definition.
UNIQUE_INDEXES = """
    SELECT name, partial, (SELECT sql FROM sqlite_master AS m WHERE m.name = list.name)
    FROM pragma_index_list(?) AS list WHERE "unique" """

#: The columns of an index; the name of an expression is NULL.
INDEX_COLUMNS = "SELECT name FROM pragma_index_info(?)"

#: The foreign keys that delete a row with the one that it points to.
CASCADING_KEYS = """
    SELECT "from", "table" FROM pragma_foreign_key_list(?) WHERE on_delete = 'CASCADE'"""

TRIGGERS = "SELECT sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?"

#: The name of each trigger, whether it may drop a row that is written, and what it runs.
ENABLED_TRIGGERS = """
    SELECT name, sql LIKE '%RAISE%(%IGNORE%)%', sql FROM sqlite_master
    WHERE type = 'trigger' AND tbl_name = ?"""

#: A trigger of a table, a view in its place, or a constraint that replaces rows instead of refusing
#: one: they may change what is written.
MAY_CHANGE = """
    SELECT 1 FROM sqlite_master WHERE tbl_name = ? AND (
        type IN ('trigger', 'view') OR type = 'table' AND upper(sql) LIKE '%ON CONFLICT%')"""

#: A change of any table, index, trigger or view changes this number.
SCHEMA_VERSION = "PRAGMA schema_version"

#: A value as SQL writes it.
LITERAL = "SELECT quote(?)"

#: A clause: a value is not a list in JSON, or has an item that is not of one type.
LIST_HOLDS_OTHERS = """
    CASE WHEN {column} IS NULL THEN 0 WHEN NOT json_valid({column}) THEN 1
         ELSE EXISTS (SELECT 1 FROM json_each({column}) WHERE json_each.type <> '{type}') END"""

# -- the time of a row's last change --------------------------------------------------------

#: A trigger, up to the condition that names the row which it changes.
KEEPER = "AFTER {event} ON {table} WHEN {condition} BEGIN UPDATE {table} SET {column} = {value}"

CREATE_KEEPER = "CREATE TRIGGER {trigger} {keeper} WHERE {row}; END"

DROP_TRIGGER = "DROP TRIGGER IF EXISTS {trigger}"

# -- keys and pages -------------------------------------------------------------------------

#: A text that equals another one by the collation of a column, which the first SELECT decides.
EQUAL_BY_COLLATION = """
    SELECT x FROM (SELECT {column} AS x FROM {table} WHERE 0 UNION ALL VALUES ('A'), ('b '))
    WHERE x = 'a' OR x = 'b'"""

#: The items of a list in JSON.
LIST = "(SELECT value FROM json_each(?))"

#: Texts of keys as rows of a query.
WANTED_KEYS = "json_each(?) AS wanted"

#: The rest of a clause that begins with a key: see the query of PostgreSQL.
AMONG_PENDING = """
    IN (SELECT {values} FROM ({pages}) AS live, json_each(live.keys) AS wanted
        WHERE substr(live.outcomes, wanted.key + 1, 1) = x'00')"""

#: Cut the keys of a query into pages, and store them.
FREEZE = """
    INSERT INTO {page} (plan_pk, number, n_rows, {keys}, outcomes, n_done, n_failed, n_no_result)
    SELECT ?, (place - 1) / ? + 1, count(*), json_group_array(key), zeroblob(count(*)), 0, 0, 0
    FROM (SELECT key, row_number() OVER (ORDER BY {order}) AS place
          FROM ({pending}) ORDER BY place)
    GROUP BY 2"""

KEYS_OF_PLAN = "SELECT value FROM {page}, json_each({keys}) WHERE plan_pk = ?"

#: How many pages a plan has, and how many rows.
SIZE_OF_PLAN = "SELECT count(*), coalesce(sum(n_rows), 0) FROM {page} WHERE plan_pk = ?"

# -- results --------------------------------------------------------------------------------

NEWEST = "SELECT coalesce(max({primary}), 0) FROM {table}"

INSERT = "INSERT INTO {table} AS stored ({names}) VALUES ({marks}) {conflict}"

#: The place of each row that was given, its primary key, and when its input was read.
STORED = """
    SELECT wanted.key, {primary}, input_read
    FROM json_each(?) AS wanted JOIN {table} ON {same}
    WHERE v_astra_major_minor = ? {condition}"""

#: Of one row, whether each value is the one that was given, and the values.
COMPARE = "SELECT {same}, {values} FROM {table} WHERE {primary} = ?"
