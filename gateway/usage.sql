-- What was used, read along the same indexes as a statement: a range of the account's versions, each with its transfer,
-- and the job of a captured hold.

-- name: usage
-- Charges, and what was given back of charges: under the tool, the task and the key of the charge. A dimension that is
-- not asked for is NULL in every row.
SELECT u.*, k.prefix AS key_prefix
FROM (
    SELECT CASE WHEN CAST(:by_day AS boolean) THEN CAST(t.created_at AT TIME ZONE 'UTC' AS date) END AS day,
        CASE WHEN CAST(:by_tool AS boolean) THEN coalesce(o.tool, t.tool) END AS tool,
        CASE WHEN CAST(:by_task AS boolean) THEN j.task END AS task,
        CASE WHEN CAST(:by_key AS boolean) THEN coalesce(o.key_id, t.key_id) END AS key_id,
        count(*) FILTER (WHERE o.id IS NULL) AS charges,
        CAST(coalesce(sum(coalesce(t.units_milli, j.units_milli)) FILTER (WHERE o.id IS NULL), 0) AS bigint)
            AS units_milli,
        CAST(coalesce(-sum(t.amount) FILTER (WHERE o.id IS NULL), 0) AS bigint) AS charged_tokens,
        CAST(coalesce(sum(t.amount) FILTER (WHERE o.id IS NOT NULL), 0) AS bigint) AS refunded_tokens
    FROM entries e
    CROSS JOIN LATERAL (SELECT * FROM transfers WHERE id = e.transfer_id LIMIT 1) t
    LEFT JOIN LATERAL (
        SELECT * FROM transfers WHERE id = t.reverses_id AND kind IN ('spend', 'capture') LIMIT 1
    ) o ON true
    LEFT JOIN LATERAL (SELECT * FROM jobs WHERE hold_id = coalesce(o.hold_id, t.hold_id) LIMIT 1) j ON true
    WHERE e.account_id = :account_id AND e.version > :after AND e.version <= :up_to
        AND (t.kind IN ('spend', 'capture') OR o.id IS NOT NULL)
    GROUP BY 1, 2, 3, 4
    ORDER BY 1, 2, 3, 4
    LIMIT :limit
) u
LEFT JOIN LATERAL (SELECT prefix FROM api_keys WHERE id = u.key_id LIMIT 1) k ON true
ORDER BY u.day, u.tool, u.task, u.key_id
