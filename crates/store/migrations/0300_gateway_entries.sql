-- What people added to a zone's gateway. Names and addresses are unique in a zone, among entries and instances.
CREATE TABLE gateway_entries (
    zone     TEXT NOT NULL REFERENCES zones (name) ON DELETE CASCADE,
    key      TEXT NOT NULL,
    instance TEXT REFERENCES instances (id) ON DELETE CASCADE,
    name     TEXT,
    address  TEXT,
    entry    TEXT NOT NULL,
    PRIMARY KEY (zone, key)
) STRICT;

CREATE UNIQUE INDEX gateway_entries_name ON gateway_entries (zone, name) WHERE name IS NOT NULL;
CREATE UNIQUE INDEX gateway_entries_address ON gateway_entries (zone, address) WHERE address IS NOT NULL;
CREATE INDEX gateway_entries_instance ON gateway_entries (instance) WHERE instance IS NOT NULL;
