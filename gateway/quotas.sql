-- Counting requests. One clock, the database's, whichever replica asks.

-- name: take_many
-- Every request counts, also a refused one, so that a batch is one update for each identity. Rows are taken in an order
-- that all writers share. A key that is not valid counts against `stranger` instead: never against its former owner.
WITH asked AS MATERIALIZED (
    SELECT
        g.at,
        g.bucket,
        g.window_s,
        CASE WHEN k.id IS NULL THEN g.stranger WHEN g.per = 'key' THEN k.id ELSE k.user_id END AS identity
    FROM json_to_recordset(CAST(:asked AS json)) AS g (
        at integer, bucket text, per text, hash text, stranger text, window_s integer
    )
    LEFT JOIN api_keys k ON k.secret_hash = decode(g.hash, 'hex')
        AND k.revoked_at IS NULL
        AND (k.expires_at IS NULL OR k.expires_at > statement_timestamp())
),
counted AS (
    INSERT INTO rate_counters AS c (bucket, identity, taken, resets_at)
    SELECT bucket, identity, count(*), statement_timestamp() + make_interval(secs => max(window_s))
    FROM asked
    GROUP BY bucket, identity
    ORDER BY bucket, identity
    ON CONFLICT (bucket, identity) DO UPDATE SET
        taken = excluded.taken + CASE WHEN c.resets_at > statement_timestamp() THEN c.taken ELSE 0 END,
        resets_at = CASE WHEN c.resets_at > statement_timestamp() THEN c.resets_at ELSE excluded.resets_at END
    RETURNING bucket, identity, taken, resets_at
)
SELECT
    a.at,
    c.taken - count(*) OVER w + row_number() OVER (w ORDER BY a.at) AS place,
    CAST(ceil(extract(epoch FROM c.resets_at - statement_timestamp())) AS integer) AS reset_s
FROM asked a
JOIN counted c USING (bucket, identity)
WINDOW w AS (PARTITION BY a.bucket, a.identity)

-- name: forget_counters
DELETE FROM rate_counters
WHERE (bucket, identity) IN (
    SELECT bucket, identity
    FROM rate_counters
    WHERE resets_at < statement_timestamp() - CAST(:kept AS interval)
    LIMIT :limit
    FOR UPDATE SKIP LOCKED
)
