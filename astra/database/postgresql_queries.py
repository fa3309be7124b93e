"""The statements that astra sends to PostgreSQL alone, by name.

A ``{name}`` is replaced by a quoted identifier or a fragment of SQL (``str.format``), a ``%s`` by a
parameter. Queries that both dialects understand are written with peewee where they are used.
"""

# -- transactions and locks -----------------------------------------------------------------

#: Settings on which it depends that values arrive as they were sent: a role, a database, or the
#: previous user of a connection from PgBouncer may have changed them. Without array_nulls, a NULL
#: in an array is the text "NULL". An error of a deferred constraint, which would come at COMMIT,
#: comes with the statement of its row, and so costs that row alone. A checkpoint has to be on the
#: disk when it is done: the next one of its page takes its rows as stored.
WRITE_SETTINGS = """
    SET LOCAL array_nulls = on; SET LOCAL DateStyle = 'ISO';
    SET LOCAL standard_conforming_strings = {standard}; SET CONSTRAINTS ALL IMMEDIATE;
    SELECT set_config('synchronous_commit', 'on', true)
    WHERE current_setting('synchronous_commit') = 'off'"""

#: Settings of a transaction whose client may be stopped or cut off: its locks are released. The
#: first applies between statements, the others while the server waits for data or sends it.
SILENCE_SETTINGS = """
    SET LOCAL idle_in_transaction_session_timeout = {silence_ms};
    SET LOCAL tcp_user_timeout = {tcp_ms};
    SET LOCAL tcp_keepalives_idle = {idle_s};
    SET LOCAL tcp_keepalives_interval = {interval_s};
    SET LOCAL tcp_keepalives_count = 4"""

SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"

#: Keep a table from being altered until the transaction ends.
LOCK_SHARED = "LOCK TABLE {table} IN ACCESS SHARE MODE"

#: One process at a time completes tables, until its transaction ends; this lock needs no table.
LOCK_INITDB = "SELECT pg_advisory_xact_lock(hashtextextended('astra initdb', 0))"

#: Do not wait for the disk at the end of the transaction.
NOT_DURABLE = "SET LOCAL synchronous_commit = off"

LIMIT_WAITING = "SET LOCAL lock_timeout = '{seconds}s'"

# -- the server -----------------------------------------------------------------------------

#: Version, role, number of connections, and whether the server is a standby.
SERVER = """
    SELECT current_setting('server_version_num')::int, current_user::text,
           (SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL), pg_is_in_recovery()"""

SERVER_SETTINGS = "SELECT name, setting FROM pg_settings WHERE name = ANY(%s)"

#: How many connections this role may have in this database.
CONNECTION_LIMIT = """
    SELECT least(
        current_setting('max_connections')::int
            - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true), '0')::int,
        (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()),
        (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user))"""

#: The server, the database and the table astra_archive, by numbers that no copy of them has but one
#: of the server's files. Such a copy has another port if it runs beside the original, and the same
#: timeline, which is later after a failover.
PLACE = """
    SELECT system_identifier, d.oid, c.oid, current_setting('port'), CASE
        WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END
    FROM pg_control_system(), pg_database AS d LEFT JOIN pg_class AS c
        ON c.oid = to_regclass(coalesce(quote_ident(%s) || '.', '') || 'astra_archive')
    WHERE datname = current_database()"""

# -- tables as they are ---------------------------------------------------------------------

#: The names of the tables, indexes and views of a schema.
RELATIONS = """
    SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = coalesce(%s, current_schema())"""

HAS_SCHEMA = "SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = %s)"

#: Each column, as :class:`~astra.database.dialect.Column` has it.
COLUMNS = """
    SELECT attname::text, format_type(atttypid, atttypmod), attnotnull, attgenerated = 's',
        atthasdef OR attidentity <> '' FROM pg_attribute
    WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"""

#: The type of each column, with its schema; of a domain, the type that it is based on. Names of the
#: server's own types are never quoted, whatever `quote_all_identifiers` says.
COLUMN_TYPES = """
    WITH RECURSIVE typed(name, type) AS (
        SELECT attname, atttypid FROM pg_attribute
        WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
        UNION ALL
        SELECT name, typbasetype FROM typed JOIN pg_type ON pg_type.oid = type
        WHERE typtype = 'd')
    SELECT name, CASE nspname WHEN 'pg_catalog' THEN nspname || '.' || typname
                              ELSE quote_ident(nspname) || '.' || quote_ident(typname) END
    FROM typed JOIN pg_type ON pg_type.oid = type
    JOIN pg_namespace ON pg_namespace.oid = typnamespace WHERE typtype <> 'd'"""

IS_UNLOGGED = "SELECT relpersistence = 'u' FROM pg_class WHERE oid = to_regclass(%s)"

#: The collation of a column by which texts that differ may be equal.
COLLATION = """
    SELECT format('%%I.%%I', nspname, collname) FROM pg_attribute
    JOIN pg_collation ON pg_collation.oid = attcollation
    JOIN pg_namespace ON pg_namespace.oid = collnamespace
    WHERE NOT collisdeterministic AND attrelid = to_regclass(%s) AND attname = %s"""

#: Fails where the server has no operator that compares two types.
COMPARE_TYPES = "SELECT CAST(NULL AS {first}) = CAST(NULL AS {second})"

#: Whether the session's time zone is UTC, in which a moment without a zone is compared.
IS_UTC = """
    SELECT timestamp '2000-01-01' = timestamptz '2000-01-01 00:00:00+00'
       AND timestamp '2000-07-01' = timestamptz '2000-07-01 00:00:00+00'"""

SEQUENCE = "SELECT pg_get_serial_sequence(%s, %s)"

#: The sequence of a column, and whether its last value may be read.
READABLE_SEQUENCE = """
    SELECT name, has_sequence_privilege(name, 'SELECT')
    FROM pg_get_serial_sequence(%s, %s) AS name"""

#: Whether a sequence would give numbers that its table already has.
SEQUENCE_IS_BEHIND = """
    SELECT max({column}) >= (SELECT last_value + is_called::int FROM {sequence}) FROM {table}"""

#: The remedy, which a message quotes.
ADVANCE_SEQUENCE = "SELECT setval('{sequence}', (SELECT max({column}) FROM {table}))"

#: Write the numbers that the sequences of a schema have reached to the server's log. It logs only
#: each 32nd number, in advance, and what was logged for the original does not count for a copy that
#: was made from it as a template: a crash would have the copy give its numbers again.
LOG_SEQUENCES = """
    SELECT setval(seqrelid::regclass, last_value) FROM (
        SELECT seqrelid, CASE WHEN has_sequence_privilege(seqrelid, 'UPDATE')
                              THEN pg_sequence_last_value(seqrelid) END AS last_value
        FROM pg_sequence JOIN pg_class ON pg_class.oid = seqrelid
        WHERE relnamespace = to_regnamespace(quote_ident(COALESCE(%s, current_schema())))
    ) AS used WHERE last_value IS NOT NULL"""

#: The columns of a constraint or a unique index of a table or of one of its partitions, by schema,
#: table and name of the constraint, and by the table. One on no column, such as CHECK (false), is
#: on the table itself (tableoid).
CONSTRAINED_COLUMNS = """
    SELECT attname::text FROM pg_attribute JOIN (
        SELECT conrelid, unnest(coalesce(conkey, ARRAY[-6]::int2[])), conname FROM pg_constraint
        UNION ALL
        SELECT indrelid, unnest(indkey::int2[]), relname
        FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    ) AS keys(relation, number, name) ON attrelid = relation AND attnum = number
    WHERE relation = to_regclass(format('%%I.%%I', %s::text, %s::text)) AND name = %s
      AND coalesce(pg_partition_root(relation)::oid, relation) = to_regclass(%s)"""

#: The columns of the primary key, which a role that may only read can see as well.
PRIMARY_COLUMNS = """
    SELECT attname FROM pg_index, unnest(indkey::int2[]) WITH ORDINALITY AS k(n, place)
    JOIN pg_attribute ON attnum = k.n
    WHERE indrelid = to_regclass(%s) AND attrelid = indrelid AND indisprimary
    ORDER BY place"""

SCHEMAS_OF_TABLE = """
    SELECT table_schema::text FROM information_schema.tables WHERE table_name = %s
    ORDER BY table_schema"""

INDEXES = """
    SELECT relname FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
    WHERE indrelid = to_regclass(%s) AND indisvalid"""

#: The condition of each valid unique index of a sorted list of columns, whether it is checked at
#: once, and whether it covers every row, with NULL in none: an index does not cover the rows of
#: tables that inherit from its own, which are read with it.
UNIQUE_INDEXES = """
    SELECT pg_get_expr(indpred, indrelid), indimmediate, are_never_null AND NOT EXISTS (
        SELECT 1 FROM pg_inherits JOIN pg_class ON pg_class.oid = inhparent
        WHERE inhparent = indrelid AND relkind = 'r')
    FROM pg_index, LATERAL (
        SELECT array_agg(attname::text ORDER BY attname), bool_and(attnotnull) FROM pg_attribute
        WHERE attrelid = indrelid AND attnum = ANY((indkey::int2[])[0:indnkeyatts - 1])
    ) AS columns(names, are_never_null)
    WHERE indrelid = to_regclass(%s) AND indisunique AND indisvalid AND indisready
      AND indexprs IS NULL AND names = %s"""

#: The triggers and rules of a table: the name, whether it may replace or drop a row that is
#: written, and what it runs.
ENABLED_TRIGGERS = """
    SELECT name, may_replace, text FROM (
        SELECT tgrelid, tgname::text, tgtype & 3 = 3, prosrc
        FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
        WHERE NOT tgisinternal AND tgenabled IN ('O', 'A')
        UNION ALL
        SELECT ev_class, rulename::text, is_instead, pg_get_ruledef(oid) FROM pg_rewrite
        WHERE ev_enabled IN ('O', 'A')
    ) AS enabled(relation, name, may_replace, text) WHERE relation = to_regclass(%s)"""

#: The foreign keys of one column that delete a row with the one that it points to, and whose
#: triggers are enabled.
CASCADING_KEYS = """
    SELECT attname::text, relname::text FROM pg_constraint
    JOIN pg_attribute ON attrelid = conrelid AND conkey = ARRAY[attnum]
    JOIN pg_class ON pg_class.oid = confrelid
    WHERE conrelid = to_regclass(%s) AND contype = 'f' AND convalidated
      AND confdeltype = 'c' AND EXISTS (
          SELECT 1 FROM pg_trigger WHERE tgconstraint = pg_constraint.oid
            AND tgrelid = conrelid AND tgenabled <> 'D')"""

# -- tables as astra makes them -------------------------------------------------------------

DROP_INDEX = "DROP INDEX CONCURRENTLY IF EXISTS {index}"

#: The schema in which tables are created, and that of a table, if this role may create some there.
SCHEMA_OF_NEW_TABLES = """
    SELECT current_schema(), (
        SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE pg_class.oid = to_regclass(%s) AND has_schema_privilege(relnamespace, 'CREATE'))"""

#: The names of tables, with their schema where it is another one than that of a further table.
PLACES = """
    SELECT string_agg(CASE WHEN c.relnamespace = beside.relnamespace THEN quote_ident(c.relname)
                           ELSE format('%%I.%%I', nspname, c.relname) END, ', ' ORDER BY place)
    FROM unnest(%s::text[]) WITH ORDINALITY AS wanted(name, place)
    JOIN pg_class AS c ON c.oid = to_regclass(name)
    JOIN pg_namespace ON pg_namespace.oid = c.relnamespace
    JOIN pg_class AS beside ON beside.oid = to_regclass(%s)"""

CREATE_SCHEMA = "CREATE SCHEMA IF NOT EXISTS {schema}"

DROP_NOT_NULL = "ALTER TABLE {table} ALTER {column} DROP NOT NULL"

SET_DEFAULT = "ALTER TABLE {table} ALTER {column} SET DEFAULT {value}"

SERVER_HAS_LZ4 = """
    SELECT coalesce(bool_or('lz4' = ANY(enumvals)), false) FROM pg_settings
    WHERE name = 'default_toast_compression'"""

#: The body of the function that keeps a column at the time of a row's last change.
KEEP_MODIFIED_BODY = """
    BEGIN
        IF TG_OP = 'INSERT' THEN
            NEW.{column} := coalesce(NEW.{column}, clock_timestamp());
        ELSIF NEW.{column} IS NULL OR NEW.{column} <= OLD.{column} THEN
            NEW.{column} := greatest(
                clock_timestamp(), OLD.{column} + interval '1 microsecond');
        END IF;
        RETURN NEW;
    END """

#: In UTC, as which a column is read whose type has no time zone. The trigger also fires for changes
#: that arrive by replication, or under session_replication_role = replica.
KEEP_MODIFIED = """
    CREATE OR REPLACE FUNCTION {function}() RETURNS trigger
    LANGUAGE plpgsql SET timezone = 'UTC' AS $${body}$$;
    CREATE OR REPLACE TRIGGER astra_keep_modified BEFORE INSERT OR UPDATE ON {table}
    FOR EACH ROW EXECUTE FUNCTION {function}();
    ALTER TABLE {table} ENABLE ALWAYS TRIGGER astra_keep_modified"""

#: A table, its partitions, and the tables that inherit from it: rows of all are read with it.
_TREE = """
    WITH RECURSIVE tree(relation) AS (
        SELECT to_regclass(%s)::oid
        UNION SELECT inhrelid FROM pg_inherits JOIN tree ON inhparent = relation)"""

#: The tables that inherit from a table. Partitions have the triggers of their table already.
INHERITING = f"""{_TREE}
    SELECT format('%%I.%%I', nspname, relname) FROM tree JOIN pg_class ON pg_class.oid = relation
    JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relation <> to_regclass(%s) AND NOT relispartition"""

#: Whether an enabled trigger of any name runs a function of this name and body for each row.
KEEPS_MODIFIED = f"""{_TREE}
    SELECT bool_and(EXISTS (
        SELECT 1 FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
        WHERE tgrelid = relation AND NOT tgisinternal AND tgenabled IN ('O', 'A')
          AND tgtype & 19 = 19 AND tgqual IS NULL AND tgattr = ''
          AND proname = %s AND prosrc = %s)) FROM tree"""

# -- roles ----------------------------------------------------------------------------------

SESSION_ROLE = "SELECT session_user"

#: The name of a role as SQL writes it.
QUOTED = "SELECT quote_ident(%s)"

ROLES = "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'"

#: The owner of a table, where this role does not act for it.
OTHER_OWNER = """
    SELECT pg_get_userbyid(relowner) FROM pg_class
    WHERE oid = to_regclass(%s) AND NOT pg_has_role(relowner, 'USAGE')"""

#: The roles other than the owner to which a privilege on a table was granted by name.
GRANTED_ROLES = """
    SELECT rolname FROM pg_class, aclexplode(relacl) AS given, pg_roles
    WHERE pg_class.oid = %s::regclass AND pg_roles.oid = given.grantee
      AND given.grantee <> relowner AND privilege_type = %s ORDER BY rolname"""

#: The places in two lists, of tables and privileges, of what this role lacks.
LACKING = """
    SELECT place FROM unnest(%s::text[], %s::text[]) WITH ORDINALITY
        AS wanted(name, privilege, place)
    WHERE NOT CASE WHEN privilege = 'DELETE' THEN has_table_privilege(name, 'DELETE')
                   ELSE has_any_column_privilege(name, privilege) END ORDER BY place"""

#: The schema of a table, and whether this role may grant its use.
SCHEMA_OF_TABLE = """
    SELECT quote_ident(nspname), pg_has_role(nspowner, 'USAGE')
    FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE pg_class.oid = %s::regclass"""

GRANT_SCHEMA = "GRANT USAGE ON SCHEMA {schema} TO {role}"

GRANT_LATER_TABLES = "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT ON TABLES TO {role}"

GRANT_TABLE = "GRANT {privilege} ON TABLE {table} TO {role}"

GRANT_SEQUENCE = "GRANT USAGE ON SEQUENCE {sequence} TO {role}"

# -- keys and pages -------------------------------------------------------------------------

#: Texts of keys as rows of a query.
WANTED_KEYS = "unnest(%s::text[]) WITH ORDINALITY AS wanted(key, place)"

#: The places of keys that differ from the values that results would store for them.
CHANGED_KEYS = """
    SELECT place - 1 FROM unnest({arrays}) WITH ORDINALITY AS wanted(key, {names}, place)
    WHERE {differ}"""

#: Foreign tables and materialized views, which peewee does not list.
OTHER_TABLES = """
    SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind IN ('f', 'm') AND nspname = COALESCE(%s, current_schema()) ORDER BY relname"""

#: The columns of a materialized view, which information_schema leaves out.
VIEW_COLUMNS = """
    SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE relkind = 'm' AND relname = %s AND nspname = COALESCE(%s, current_schema())
    AND attnum > 0 AND NOT attisdropped ORDER BY attnum"""

#: The rest of a clause that begins with a key: its row has not ended in one of some pages. The
#: subquery does not refer to the key, so that its result is hashed; PostgreSQL does not estimate
#: how long the arrays are, and would otherwise search all of them for each row.
AMONG_PENDING = """
    IN (SELECT {values}
        FROM ({pages}) AS live, unnest(keys) WITH ORDINALITY AS wanted(key, place)
        WHERE get_byte(outcomes, (wanted.place - 1)::int) = 0)"""

#: The keys of a query in pages of a limited number of rows. The order is total, so that the same
#: keys are always cut into the same pages.
CUT_INTO_PAGES = """
    SELECT (place - 1) / %s + 1 AS number, count(*) AS n_rows, array_agg(key ORDER BY place) AS keys
    FROM (SELECT key, row_number() OVER (ORDER BY {order} ROWS UNBOUNDED PRECEDING) AS place
          FROM ({pending}) AS pending) AS numbered
    GROUP BY 1"""

#: Store such pages; return how many they are, and of how many rows.
FREEZE = """
    WITH frozen AS (
        INSERT INTO {page}
            (plan_pk, number, n_rows, {keys}, outcomes, n_done, n_failed, n_no_result)
        SELECT %s, number, n_rows, keys, decode(repeat('00', n_rows::int), 'hex'), 0, 0, 0
        FROM {cut} AS pages
        RETURNING n_rows)
    SELECT count(*), coalesce(sum(n_rows), 0) FROM frozen"""

#: The keys of a plan that may be too long for the index of how their rows ended, or all.
LONG_KEYS = """
    SELECT key FROM {page}, unnest(key_texts) AS key
    WHERE plan_pk = %s AND (octet_length(key) > %s OR %s)"""

#: A list that was compressed in a temporary table is copied from it as it is.
COMPRESS_WITH_LZ4 = """
    SELECT set_config(name, 'lz4', true) FROM pg_settings
    WHERE name = 'default_toast_compression' AND 'lz4' = ANY(enumvals)"""

#: PostgreSQL fills a table from a query with several processes, but runs INSERT ... SELECT in one.
CREATE_EVALUATED = "CREATE TEMPORARY TABLE {table} ON COMMIT DROP AS {query}"

# -- results --------------------------------------------------------------------------------

#: Lock a table as writing does, so that it stays as it is until the transaction ends; return its
#: columns, and whether a rule, a policy or a trigger may change what is written.
LOCK_AND_DESCRIBE = """
    LOCK TABLE {table} IN ROW EXCLUSIVE MODE;
    SELECT attname, atttypid::bigint, atttypmod, relkind <> 'r' OR relhasrules
        OR relrowsecurity OR EXISTS (
            SELECT 1 FROM pg_trigger WHERE tgrelid = attrelid AND NOT tgisinternal),
        attgenerated <> '' OR attidentity = 'a'
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
    ORDER BY attnum"""

#: What values of a type are to whoever reads them. An enum is a text; among types that are like no
#: other, such as bytea, and between moments with a time zone and without, each is of its own kind.
_KIND = """
    (SELECT CASE WHEN typname IN ('json', 'jsonb') THEN 'json'
                 WHEN typcategory = 'U' OR typname = 'timestamptz' THEN typname::text
                 WHEN typcategory = 'E' THEN 'S' ELSE typcategory::text END
     FROM pg_type WHERE oid = {})"""

#: Of each declared column: its stored type, the declared type, and the kinds of both.
KINDS_OF_COLUMNS = f"""
    SELECT attname, format_type(atttypid, atttypmod), to_regtype(declared)::text,
        {_KIND.format("atttypid")}, {_KIND.format("to_regtype(declared)")}
    FROM pg_attribute JOIN unnest(%s::text[], %s::text[]) AS wanted(name, declared)
        ON attname = name
    WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped"""

#: A value as given and as stored, by the text that the type's own function makes of it:
#: char(n)::text would hide blanks.
COMPARED = (
    "({place}, to_jsonb(CAST(g{place} AS {kind})), CASE WHEN stored.{column} IS NOT NULL THEN "
    "to_jsonb(CAST(format('%%s', stored.{column}) AS {kind})) END, stored.{column}::text)"
)

#: The first row that is missing or holds another value than it was given.
FIRST_CHANGED = """
    SELECT {primary}, place, found
    FROM unnest({arrays}) AS given(pk, {given})
    LEFT JOIN {table} AS stored ON {primary} = pk::bigint,
    LATERAL (VALUES {pairs}) AS columns(place, wanted, read, found)
    WHERE {primary} IS NULL OR wanted IS DISTINCT FROM read LIMIT 1"""

#: Numbers for new rows; none if one of the keys has a result at this version. The LIMIT makes
#: the server look each key up in the index: otherwise it would scan the whole of a table that was
#: last analysed while it was empty.
DRAW_NUMBERS = """
    SELECT nextval(%s::regclass) FROM generate_series(1, %s) WHERE NOT EXISTS (
        SELECT 1 FROM unnest({arrays}) AS wanted({names}), LATERAL (
            SELECT 1 FROM {table} WHERE {same}
            AND v_astra_major_minor = %s {condition} LIMIT 1) AS stored)"""

#: Results in the binary format of COPY.
COPY = "COPY {table} ({columns}) FROM STDIN (FORMAT binary)"

#: Insert or replace results; return the place of each that was written, and its primary key. Each
#: column is one array: one parameter for a column, however many rows there are, and no temporary
#: table, which would bloat the catalogues at every checkpoint.
UPSERT = """
    WITH given AS MATERIALIZED (
        SELECT u.place - 1 AS place, {selected}
        FROM unnest({arrays}) WITH ORDINALITY AS u({aliases}, place)),
    written AS (
        INSERT INTO {table} AS stored ({names})
        SELECT {aliases} FROM given ORDER BY {keys}
        {conflict}
        RETURNING {key}, {primary} AS primary_key)
    SELECT given.place, written.primary_key FROM given JOIN written ON {same}"""
