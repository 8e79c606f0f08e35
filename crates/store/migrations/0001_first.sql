-- Desired state, addresses and operations. Times are RFC 3339 in UTC; documents are JSON.
CREATE TABLE zones (
    name      TEXT PRIMARY KEY,
    record    TEXT NOT NULL
) STRICT;

CREATE TABLE instances (
    id         TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    zone       TEXT NOT NULL REFERENCES zones (name),
    address    TEXT NOT NULL,
    spec       TEXT NOT NULL,
    desired    TEXT NOT NULL,
    status     TEXT NOT NULL,
    published  INTEGER NOT NULL,
    routed     INTEGER NOT NULL,
    restart    INTEGER NOT NULL,
    failure    TEXT,
    created_at TEXT NOT NULL,
    expires_at TEXT,
    UNIQUE (zone, address)
) STRICT;

-- Addresses that were given back, and when; they rest before they are given out again.
CREATE TABLE freed_addresses (
    zone     TEXT NOT NULL,
    address  TEXT NOT NULL,
    freed_at TEXT NOT NULL,
    PRIMARY KEY (zone, address)
) STRICT;

CREATE TABLE operations (
    id          TEXT PRIMARY KEY,
    kind        TEXT NOT NULL,
    target      TEXT NOT NULL,
    object      TEXT NOT NULL,
    status      TEXT NOT NULL,
    failure     TEXT,
    created_at  TEXT NOT NULL,
    finished_at TEXT
) STRICT;

-- At most one operation is under way for an object.
CREATE UNIQUE INDEX operations_open ON operations (object) WHERE status = 'running';
CREATE INDEX operations_newest ON operations (created_at);

CREATE TABLE operation_events (
    operation  TEXT NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    seq        INTEGER NOT NULL,
    event      TEXT NOT NULL,
    PRIMARY KEY (operation, seq)
) STRICT, WITHOUT ROWID;

-- Only hashes of tokens are kept.
CREATE TABLE tokens (
    hash       BLOB PRIMARY KEY,
    name       TEXT NOT NULL,
    role       TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

CREATE TABLE idempotency_keys (
    token      TEXT NOT NULL,
    key        TEXT NOT NULL,
    request    BLOB NOT NULL,
    status     INTEGER,
    body       TEXT,
    created_at TEXT NOT NULL,
    PRIMARY KEY (token, key)
) STRICT, WITHOUT ROWID;
