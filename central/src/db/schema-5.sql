-- How the power of nodes is switched, what the last test of it found, and who looks after them.
CREATE TABLE power (
    node       TEXT PRIMARY KEY REFERENCES nodes (id) ON DELETE CASCADE,
    -- JSON: a list, the preferred one first.
    methods    TEXT NOT NULL DEFAULT '[]',
    tech       TEXT,
    pi         TEXT,
    -- Why central does nothing by itself, if so.
    held       TEXT,
    tested     INTEGER,
    tests      TEXT NOT NULL DEFAULT '[]',
    -- When a test was asked for that has not been made.
    test_asked INTEGER
) STRICT;

CREATE TABLE power_operations (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    node           TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    action         TEXT NOT NULL,
    who            TEXT NOT NULL,
    reason         TEXT NOT NULL,
    requested      INTEGER NOT NULL,
    confirm_within INTEGER NOT NULL,
    started        INTEGER,
    finished       INTEGER,
    method         TEXT,
    outcome        TEXT,
    attempts       TEXT NOT NULL DEFAULT '[]',
    -- JSON: the boots known when it started. A call home in one of these confirms nothing.
    boots          TEXT NOT NULL DEFAULT '[]',
    confirm_by     INTEGER,
    confirmed      INTEGER,
    result         TEXT NOT NULL,
    note           TEXT
) STRICT;
CREATE INDEX power_operations_by_node ON power_operations (node, id);
CREATE INDEX power_operations_by_result ON power_operations (result);
-- One at a time for each node.
CREATE UNIQUE INDEX power_operations_under_way ON power_operations (node) WHERE result IN ('pending', 'running');
CREATE INDEX power_operations_awaited ON power_operations (node) WHERE result IN ('unconfirmed', 'unknown');

-- Nodes that are, or were, down.
CREATE TABLE power_records (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    node     TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    since    INTEGER NOT NULL,
    opened   INTEGER NOT NULL,
    rung     TEXT,
    rung_at  INTEGER,
    level    TEXT NOT NULL,
    level_at INTEGER NOT NULL,
    closed   INTEGER,
    why      TEXT
) STRICT;
CREATE UNIQUE INDEX power_records_open ON power_records (node) WHERE closed IS NULL;

-- What central did or noticed by itself, and whether the operators' program was told.
CREATE TABLE power_events (
    seq     INTEGER PRIMARY KEY AUTOINCREMENT,
    at      INTEGER NOT NULL,
    -- No reference: what happened to a node that was removed since is kept.
    node    TEXT,
    kind    TEXT NOT NULL,
    message TEXT NOT NULL,
    tech    TEXT,
    pi      TEXT,
    told    INTEGER,
    tries   INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX power_events_untold ON power_events (seq) WHERE told IS NULL;

CREATE TABLE power_settings (
    name  TEXT PRIMARY KEY,
    -- JSON.
    value TEXT NOT NULL
) STRICT;
