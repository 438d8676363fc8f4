CREATE TABLE listeners (
    id INTEGER PRIMARY KEY,
    addr TEXT NOT NULL,
    protocol TEXT NOT NULL,
    max_connections INTEGER NOT NULL CHECK (max_connections >= 0)
) STRICT;
CREATE UNIQUE INDEX listeners_addr ON listeners (addr);

-- A row without a hostname is the listener's default target. The order of routes is that of their ids: a new row gets
-- the greatest, and a replaced route keeps its own.
CREATE TABLE routes (
    id INTEGER PRIMARY KEY,
    listener_id INTEGER NOT NULL REFERENCES listeners (id) ON DELETE CASCADE,
    hostname TEXT,
    mode TEXT NOT NULL,
    tls_cert TEXT,
    tls_key TEXT,
    backend_tls INTEGER NOT NULL CHECK (backend_tls IN (0, 1)),
    send_proxy_protocol INTEGER NOT NULL CHECK (send_proxy_protocol IN (0, 1))
) STRICT;
CREATE UNIQUE INDEX routes_hostname ON routes (listener_id, hostname);
CREATE UNIQUE INDEX routes_default ON routes (listener_id) WHERE hostname IS NULL;

CREATE TABLE backends (
    route_id INTEGER NOT NULL REFERENCES routes (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    addr TEXT NOT NULL,
    PRIMARY KEY (route_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE l7_policies (
    route_id INTEGER NOT NULL REFERENCES routes (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    kind TEXT NOT NULL,
    value TEXT NOT NULL CHECK (value <> ''),
    PRIMARY KEY (route_id, position)
) STRICT, WITHOUT ROWID;

-- What makes a rule unique is an index of its own, so that a later version can widen it (scope, group) without
-- rewriting the table. The kind is kept beside the value for people who read the table.
CREATE TABLE firewall_rules (
    id INTEGER PRIMARY KEY,
    action TEXT NOT NULL CHECK (action IN ('block', 'allow')),
    kind TEXT NOT NULL CHECK (kind IN ('ip', 'cidr', 'country')),
    value TEXT NOT NULL,
    created_at INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT;
CREATE UNIQUE INDEX firewall_rules_subject ON firewall_rules (value, action);
