-- NULL: the system's roots.
ALTER TABLE routes ADD COLUMN backend_ca TEXT;
-- NULL: the client's.
ALTER TABLE routes ADD COLUMN backend_server_name TEXT;
ALTER TABLE routes ADD COLUMN backend_insecure INTEGER NOT NULL DEFAULT 0 CHECK (backend_insecure IN (0, 1));
ALTER TABLE routes ADD COLUMN backend_protocol TEXT NOT NULL DEFAULT 'auto';
