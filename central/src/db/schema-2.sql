-- A node may have several keys, or none before it has enrolled: keys move into a table of their own, and the nodes' table is
-- made anew without them. Run with foreign keys off; see migrate().
CREATE TABLE nodes_2 (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    -- JSON. Named so because GROUPS is a word of SQL.
    member_of    TEXT NOT NULL DEFAULT '[]',
    boot_state   TEXT NOT NULL,
    -- The boot in which the install or upgrade script was handed out since that was asked for.
    handed_out   TEXT,
    -- A state for one boot, and that boot once it has contacted.
    once_state   TEXT,
    once_boot    TEXT,
    -- The boot that an operator asked to end.
    reboot       TEXT,
    run_level    TEXT,
    created      INTEGER NOT NULL,
    last_seen    INTEGER,
    last_contact INTEGER,
    facts        TEXT,
    status       TEXT
) STRICT;

INSERT INTO nodes_2 (id, name, boot_state, handed_out, run_level, created, last_seen, last_contact, facts, status)
SELECT id, name, boot_state, installing, run_level, created, last_seen, last_contact, facts, status FROM nodes;

CREATE TABLE node_keys (
    spki        TEXT PRIMARY KEY,
    node        TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    created     INTEGER NOT NULL,
    -- When a newer key was made known, and until when this one counts beside it.
    replaced    INTEGER,
    ends        INTEGER,
    -- Whether the first contact by this key ends the others.
    ends_others INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX node_keys_by_node ON node_keys (node, created);
INSERT INTO node_keys (spki, node, created) SELECT spki, id, created FROM nodes;

DROP TABLE nodes;
ALTER TABLE nodes_2 RENAME TO nodes;

CREATE TABLE enrolments (
    -- SHA-256 of the token.
    token   TEXT PRIMARY KEY,
    node    TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    -- The key that enrolled last; the node's own from the confirmation on.
    spki    TEXT,
    spent   INTEGER,
    revoked INTEGER
) STRICT;

CREATE TABLE roots (
    serial    INTEGER PRIMARY KEY,
    published INTEGER NOT NULL,
    envelope  BLOB NOT NULL
) STRICT;

CREATE TABLE logs (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    node     TEXT NOT NULL REFERENCES nodes (id) ON DELETE CASCADE,
    received INTEGER NOT NULL,
    boot     TEXT NOT NULL,
    role     TEXT NOT NULL,
    -- Number of the first line, and of the one after the last.
    first    INTEGER NOT NULL,
    next     INTEGER NOT NULL,
    -- What it counts towards the node's bound, in bytes.
    weight   INTEGER NOT NULL,
    lines    TEXT NOT NULL
) STRICT;
CREATE INDEX logs_by_node ON logs (node, seq);
CREATE INDEX logs_by_boot ON logs (node, boot, role, next);
