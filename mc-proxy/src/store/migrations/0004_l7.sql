-- Counts what it would refuse, and refuses nothing.
ALTER TABLE l7_policies ADD COLUMN shadow INTEGER NOT NULL DEFAULT 0 CHECK (shadow IN (0, 1));
