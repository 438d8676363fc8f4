ALTER TABLE listeners ADD COLUMN
    max_connections_per_source INTEGER NOT NULL DEFAULT 0 CHECK (max_connections_per_source >= 0);
ALTER TABLE listeners ADD COLUMN proxy_protocol INTEGER NOT NULL DEFAULT 0 CHECK (proxy_protocol IN (0, 1));
-- Networks, separated by commas, and without effect unless proxy_protocol is 1.
ALTER TABLE listeners ADD COLUMN proxy_trusted TEXT NOT NULL DEFAULT '';
ALTER TABLE listeners ADD COLUMN proxy_trust_any INTEGER NOT NULL DEFAULT 0 CHECK (proxy_trust_any IN (0, 1));

-- Names sorted and separated by commas; empty for any client.
ALTER TABLE routes ADD COLUMN alpn TEXT NOT NULL DEFAULT '' CHECK (hostname IS NOT NULL OR alpn = '');
-- Of the header that send_proxy_protocol asks for.
ALTER TABLE routes ADD COLUMN proxy_protocol_version TEXT NOT NULL DEFAULT 'v2';
ALTER TABLE routes ADD COLUMN transparent INTEGER NOT NULL DEFAULT 0 CHECK (transparent IN (0, 1));
-- NULL: as proxy.splice says.
ALTER TABLE routes ADD COLUMN splice TEXT;

DROP INDEX routes_hostname;
CREATE UNIQUE INDEX routes_key ON routes (listener_id, hostname, alpn);
