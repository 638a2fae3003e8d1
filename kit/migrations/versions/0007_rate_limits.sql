-- How many requests an identity made in its window. Unlogged: a count costs no write-ahead log and no wait for the disk,
-- and a crash of Postgres may forget counts; no money follows from them.
-- The room on each page keeps an update within it; the index holds nothing that a count changes.
CREATE UNLOGGED TABLE rate_counters (
    bucket text NOT NULL,
    identity text NOT NULL,
    taken bigint NOT NULL,
    resets_at timestamptz NOT NULL,
    PRIMARY KEY (bucket, identity),
    CONSTRAINT rate_counters_taken_check CHECK (taken > 0)
) WITH (fillfactor = 50);
