-- What the appliances last said of their leases, so that one that is made anew can go on with them. JSON.
CREATE TABLE leases (
    zone    TEXT PRIMARY KEY REFERENCES zones (name) ON DELETE CASCADE,
    leases  TEXT NOT NULL
) STRICT;
