-- Holds of tools: set aside by a check, charged by the spend that names the hold, at the price of the check.

-- The price that a hold was quoted at: `tokens` for each `per_units` units.
CREATE TABLE tool_holds (
    hold_id TEXT NOT NULL,
    tokens BIGINT NOT NULL,
    per_units BIGINT NOT NULL,
    CONSTRAINT tool_holds_pkey PRIMARY KEY (hold_id),
    CONSTRAINT tool_holds_price_check CHECK (tokens > 0 AND per_units > 0),
    CONSTRAINT tool_holds_hold_id_fkey FOREIGN KEY(hold_id) REFERENCES holds (id)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tool_holds
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A capture says its units, and what it left free, when a spend named the hold: a repeat is answered by them.
ALTER TABLE transfers
    DROP CONSTRAINT transfers_spend_check,
    ADD CONSTRAINT transfers_spend_check CHECK ((units_milli IS NULL) = (free_after IS NULL) AND CASE kind WHEN 'spend' THEN units_milli IS NOT NULL WHEN 'capture' THEN true ELSE units_milli IS NULL END);

-- As before, and: a spend has a reason, which a repeat must share; a reference under which a hold was captured by a
-- spend is answered as that spend was.
CREATE OR REPLACE FUNCTION spend_many(asked json)
RETURNS TABLE (at integer, outcome text, transfer_id bigint, tokens bigint, free bigint, cap_per text)
LANGUAGE plpgsql
-- One plan, made once and kept while the tables grow: it must not read a table whole because that was small then.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    item record;
    here bigint;                    -- the account that the loop is at, and how it stands after the items before
    here_balance bigint;
    here_version bigint;
    first_use jsonb := '{}';        -- 'tool reference' of this account's items that repeat -> place in `taken`
    caps jsonb := '{}';             -- capped key -> what it has used
    cap_windows jsonb := '{}';
    cap_left bigint;
    use_name text;
    place integer := 0;
    first_place integer;
    -- What was accepted, column by column.
    taken integer[] := '{}'; accounts_of bigint[] := '{}'; tools text[] := '{}'; refs text[] := '{}';
    costs bigint[] := '{}'; units bigint[] := '{}'; prices integer[] := '{}'; key_ids text[] := '{}';
    reasons text[] := '{}';
    frees bigint[] := '{}'; versions bigint[] := '{}'; balances bigint[] := '{}';
    repeats integer[] := '{}'; repeat_of integer[] := '{}';
BEGIN
    -- A statement of its own: what is read after it is what committed before the locks were ours.
    PERFORM FROM accounts
    WHERE user_id = ANY (ARRAY(
        SELECT k.user_id
        FROM api_keys k
        WHERE k.secret_hash = ANY (ARRAY(SELECT decode(g ->> 'hash', 'hex') FROM json_array_elements(asked) g))
    ))
    ORDER BY id
    FOR NO KEY UPDATE;

    FOR item IN
        SELECT g.at, g.tool, g.reference, g.units, g.cost, g.price_version, g.reason, k.id AS key_id, k.suspended, k.cap_tokens,
            k.cap_per, k.cap_used, k.cap_window, k.window_now, a.id AS account_id, a.balance, a.held, a.version,
            a.debt, a.frozen_at IS NOT NULL OR a.debt > 0 AS frozen, a.due_at <= clock_timestamp() AS due,
            e.kind AS earlier, e.id AS earlier_id, e.amount AS earlier_amount, e.units_milli AS earlier_units,
            e.free_after AS earlier_free, e.reason AS earlier_reason,
            count(*) OVER (PARTITION BY a.id, g.tool, g.reference) AS uses
        FROM json_to_recordset(asked) AS g (
            at integer, hash text, tool text, reference text, units bigint, cost bigint, price_version integer,
            reason text
        )
        LEFT JOIN LATERAL (
            SELECT k.id, k.user_id, u.suspended_at IS NOT NULL AS suspended, k.cap_tokens, k.cap_per, k.cap_used,
                k.cap_window, CAST(CASE k.cap_per
                    WHEN 'day' THEN date_trunc('day', clock_timestamp())
                    WHEN 'month' THEN date_trunc('month', clock_timestamp())
                    WHEN 'total' THEN to_timestamp(0)
                END AS date) AS window_now
            FROM api_keys k
            JOIN users u ON u.id = k.user_id
            WHERE k.secret_hash = decode(g.hash, 'hex') AND k.revoked_at IS NULL
                AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
        ) k ON true
        LEFT JOIN accounts a ON a.user_id = k.user_id
        LEFT JOIN LATERAL (
            SELECT t.id, t.kind, t.amount, t.units_milli, t.free_after, t.reason
            FROM transfers t
            WHERE t.account_id = a.id AND t.tool = g.tool AND t.reference = g.reference
            UNION ALL
            -- A hold owns its reference from its placing on, because its capture is booked under it.
            SELECT NULL, 'hold', NULL, NULL, NULL, NULL
            FROM holds h
            WHERE h.account_id = a.id AND h.tool = g.tool AND h.reference = g.reference AND h.state = 'pending'
        ) e ON true
        ORDER BY a.id, g.at
    LOOP
        at := item.at; transfer_id := NULL; tokens := NULL; free := NULL; cap_per := NULL;
        IF item.account_id IS DISTINCT FROM here THEN
            here := item.account_id; here_balance := item.balance; here_version := item.version;
            first_use := '{}';
        END IF;
        first_place := NULL;
        IF item.uses > 1 AND here IS NOT NULL THEN
            use_name := jsonb_build_array(item.tool, item.reference)::text;
            first_place := (first_use ->> use_name)::integer;
        END IF;
        cap_left := NULL;
        IF item.cap_tokens IS NOT NULL THEN
            cap_left := greatest(0, item.cap_tokens - coalesce(
                (caps ->> item.key_id)::bigint,
                CASE WHEN item.cap_window = item.window_now THEN item.cap_used ELSE 0 END
            ));
        END IF;

        IF item.key_id IS NULL THEN
            outcome := 'unknown';
        ELSIF item.suspended THEN
            outcome := 'suspended';
        ELSIF item.earlier IS NOT NULL THEN
            outcome := 'conflict';
            -- Only spends say their units: those that were charged at once, and those that captured a tool's hold.
            IF item.earlier_units = item.units AND item.earlier_reason IS NOT DISTINCT FROM item.reason THEN
                outcome := 'replayed';
                transfer_id := item.earlier_id; tokens := -item.earlier_amount; free := item.earlier_free;
            END IF;
        ELSIF item.due THEN
            outcome := 'due'; tokens := item.account_id;
        ELSIF first_place IS NOT NULL THEN
            IF units[first_place] = item.units AND reasons[first_place] IS NOT DISTINCT FROM item.reason THEN
                repeats := repeats || item.at; repeat_of := repeat_of || first_place;
                CONTINUE;
            END IF;
            outcome := 'conflict';
        ELSIF item.frozen THEN
            outcome := 'frozen'; tokens := item.debt;
        ELSIF item.cost > here_balance - item.held THEN
            outcome := 'poor'; free := here_balance - item.held;
        ELSIF item.cost > cap_left THEN
            outcome := 'capped'; tokens := cap_left; cap_per := item.cap_per;
        ELSE
            here_balance := here_balance - item.cost;
            here_version := here_version + 1;
            place := place + 1;
            taken := taken || item.at; accounts_of := accounts_of || here; tools := tools || item.tool;
            refs := refs || item.reference; costs := costs || item.cost; units := units || item.units;
            prices := prices || item.price_version; key_ids := key_ids || item.key_id;
            reasons := array_append(reasons, item.reason);
            frees := frees || (here_balance - item.held); versions := versions || here_version;
            balances := balances || here_balance;
            IF item.uses > 1 THEN
                first_use := jsonb_set(first_use, ARRAY[use_name], to_jsonb(place));
            END IF;
            IF cap_left IS NOT NULL THEN
                caps := jsonb_set(caps, ARRAY[item.key_id], to_jsonb(item.cap_tokens - cap_left + item.cost));
                cap_windows := jsonb_set(cap_windows, ARRAY[item.key_id], to_jsonb(item.window_now));
            END IF;
            CONTINUE;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF place = 0 THEN
        RETURN;
    END IF;

    INSERT INTO accounts (kind, code)
    SELECT DISTINCT 'revenue', 'revenue:' || t
    FROM unnest(tools) t
    WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.code = 'revenue:' || t)
    ON CONFLICT (code) DO NOTHING;

    IF caps <> '{}' THEN
        UPDATE api_keys k
        SET cap_used = c.value::bigint, cap_window = (cap_windows ->> c.key)::date
        FROM jsonb_each_text(caps) c
        WHERE k.id = c.key;
    END IF;

    RETURN QUERY
    WITH given AS MATERIALIZED (
        SELECT
            -- The row locks gave this transaction its id already, which the chain wants to be older than its numbers.
            nextval('transfers_id_seq') AS id,
            (SELECT h.id FROM accounts h WHERE h.code = 'revenue:' || g.tool) AS house_id,
            g.*
        FROM unnest(
            taken, accounts_of, tools, refs, costs, units, prices, key_ids, frees, versions, balances, reasons
        ) WITH ORDINALITY AS g (
            at, account_id, tool, reference, cost, units_milli, price_version, key_id, free_after, version,
            balance_after, reason, place
        )
    ),
    moved AS (
        INSERT INTO transfers (
            id, kind, account_id, tool, reference, amount, price_version, event_at, key_id, units_milli, free_after,
            reason
        )
        OVERRIDING SYSTEM VALUE
        SELECT id, 'spend', account_id, tool, reference, -cost, price_version, now(), key_id, units_milli, free_after,
            reason
        FROM given
    ),
    sides AS (
        INSERT INTO entries (account_id, version, transfer_id, amount, balance_after)
        SELECT account_id, version, id, -cost, balance_after FROM given
        UNION ALL
        SELECT house_id, id, id, cost, NULL FROM given
    ),
    left_with AS (
        UPDATE accounts a
        SET balance = p.balance_after, version = p.version
        FROM (
            SELECT DISTINCT ON (account_id) account_id, version, balance_after
            FROM given
            ORDER BY account_id, version DESC
        ) p
        WHERE a.id = p.account_id
    )
    SELECT at, 'charged', id, cost, free_after, NULL FROM given
    UNION ALL
    SELECT r.at, 'replayed', g.id, g.cost, g.free_after, NULL
    FROM unnest(repeats, repeat_of) AS r (at, place)
    JOIN given g ON g.place = r.place;
END
$$;
