-- Rules are loaded and replaced by the million, so the table is its own index, of one tree, with numbers and bytes for
-- keys. Groups have numbers for the same reason. Texts of 0001 are turned into bytes by the program.
CREATE TABLE rule_groups (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 31)
) STRICT;
CREATE UNIQUE INDEX rule_groups_name ON rule_groups (name);
INSERT INTO rule_groups (id, name) VALUES (1, 'default');

-- Within a group the order of the key is that of the program. The checks have no IN: SQLite makes a list of three a
-- table of its own with every row, which costs a quarter of the time.
CREATE TABLE rules (
    group_id INTEGER NOT NULL REFERENCES rule_groups (id),
    -- 0 block, 1 allow, 2 count
    action INTEGER NOT NULL CHECK (action BETWEEN 0 AND 2),
    -- 4 IPv4, 6 IPv6, 9 a country by its code
    kind INTEGER NOT NULL CHECK (kind = 4 OR kind = 6 OR kind = 9),
    -- In network byte order; the two letters of a country
    addr BLOB NOT NULL CHECK (length(addr) = CASE kind WHEN 4 THEN 4 WHEN 6 THEN 16 ELSE 2 END),
    prefix_len INTEGER NOT NULL CHECK (prefix_len BETWEEN 0 AND CASE kind WHEN 4 THEN 32 WHEN 6 THEN 128 ELSE 0 END),
    -- 0 the default, 1 host, 65536 + port a listener
    scope INTEGER NOT NULL CHECK (scope = 0 OR scope = 1 OR scope BETWEEN 65537 AND 131071),
    -- Milliseconds since the epoch
    expires_at INTEGER CHECK (expires_at BETWEEN 0 AND 253402300799999),
    comment TEXT CHECK (length(CAST(comment AS BLOB)) <= 200),
    -- Seconds since the epoch
    created_at INTEGER NOT NULL CHECK (created_at >= 0),
    PRIMARY KEY (group_id, action, kind, addr, prefix_len, scope),
    CHECK (NOT (action = 1 AND kind = 9))
) STRICT, WITHOUT ROWID;
CREATE INDEX rules_expires_at ON rules (expires_at) WHERE expires_at IS NOT NULL;

-- A change that is undone at the deadline unless it is confirmed; at most one.
CREATE TABLE pending (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- 64 bits, unsigned in the program
    id INTEGER NOT NULL,
    -- Milliseconds since the epoch
    deadline INTEGER NOT NULL CHECK (deadline >= 0)
) STRICT;

-- What undoes it, in order. Groups by name: one that is empty meanwhile has no number.
CREATE TABLE pending_changes (
    seq INTEGER PRIMARY KEY,
    is_put INTEGER NOT NULL CHECK (is_put IN (0, 1)),
    group_name TEXT NOT NULL,
    action INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    addr BLOB NOT NULL,
    prefix_len INTEGER NOT NULL,
    scope INTEGER NOT NULL,
    expires_at INTEGER,
    comment TEXT
) STRICT;
