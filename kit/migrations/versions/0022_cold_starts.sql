-- The last starts of each model application at each scale, newest first: what a caller is told to wait is worked out
-- of them. Units: seconds.
CREATE TABLE cold_starts (
    application text NOT NULL,
    scale text NOT NULL,
    took_s integer[] NOT NULL,
    PRIMARY KEY (application, scale),
    CONSTRAINT cold_starts_took_check CHECK (cardinality(took_s) BETWEEN 1 AND 5 AND 0 < ALL (took_s))
);
