"""The connection, its timeouts and locks, and the SQL in which PostgreSQL and SQLite differ."""
