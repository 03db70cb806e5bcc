CREATE TABLE operators (
    spki    TEXT PRIMARY KEY,
    name    TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT;

CREATE TABLE nodes (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    spki         TEXT NOT NULL UNIQUE,
    boot_state   TEXT NOT NULL,
    -- The boot in which the install script was handed out since a reinstall was asked for.
    installing   TEXT,
    run_level    TEXT,
    created      INTEGER NOT NULL,
    last_seen    INTEGER,
    last_contact INTEGER,
    facts        TEXT,
    status       TEXT
) STRICT;

CREATE TABLE events (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    node     TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    received INTEGER NOT NULL,
    -- A batch that is posted again after a lost answer adds nothing.
    digest   TEXT NOT NULL,
    event    TEXT NOT NULL,
    UNIQUE (node, digest)
) STRICT;
CREATE INDEX events_by_node ON events (node, seq);

CREATE TABLE releases (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256    TEXT NOT NULL UNIQUE,
    size      INTEGER NOT NULL,
    published INTEGER NOT NULL,
    manifest  TEXT NOT NULL
) STRICT;

CREATE TABLE scripts (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    sha256    TEXT NOT NULL UNIQUE,
    kind      TEXT NOT NULL,
    serial    INTEGER NOT NULL,
    expires   INTEGER NOT NULL,
    published INTEGER NOT NULL,
    script    TEXT NOT NULL,
    envelope  BLOB NOT NULL
) STRICT;
CREATE INDEX scripts_by_serial ON scripts (kind, serial DESC, seq DESC);

CREATE TABLE slices (
    name  TEXT PRIMARY KEY,
    keys  TEXT NOT NULL,
    rspec TEXT NOT NULL,
    image TEXT NOT NULL
) STRICT;

CREATE TABLE slivers (
    slice TEXT NOT NULL REFERENCES slices (name) ON DELETE CASCADE,
    node  TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    PRIMARY KEY (slice, node)
) STRICT, WITHOUT ROWID;
CREATE INDEX slivers_by_node ON slivers (node);
