-- Two worlds: `live` is money, `test` is play. A user has an account in each, a key is of one, house accounts are in both.

ALTER TABLE accounts
    ADD COLUMN world TEXT DEFAULT 'live' NOT NULL,
    ADD CONSTRAINT accounts_world_check CHECK (world IN ('live', 'test')),
    ADD CONSTRAINT accounts_user_id_world_key UNIQUE (user_id, world),
    ADD CONSTRAINT accounts_code_world_key UNIQUE (code, world),
    DROP CONSTRAINT accounts_user_id_key,
    DROP CONSTRAINT accounts_code_key;
-- A key belongs to an account that is there: its user's, in its world.
ALTER TABLE api_keys
    ADD COLUMN world TEXT DEFAULT 'live' NOT NULL,
    DROP CONSTRAINT api_keys_user_id_fkey,
    ADD CONSTRAINT api_keys_user_id_fkey FOREIGN KEY (user_id, world) REFERENCES accounts (user_id, world);
-- A purchase fills the account of its world; only a key says that this is the test world's.
ALTER TABLE purchases
    ADD COLUMN world TEXT DEFAULT 'live' NOT NULL,
    ADD CONSTRAINT purchases_world_check CHECK (world = 'live' OR world = 'test' AND topup_user_id IS NOT NULL);

-- What was written into one world stays there.
CREATE FUNCTION refuse_other_world() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the world of % is fixed', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER world_is_fixed BEFORE UPDATE OF world ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_other_world();
CREATE TRIGGER world_is_fixed BEFORE UPDATE OF world ON api_keys
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_other_world();
CREATE TRIGGER world_is_fixed BEFORE UPDATE OF world ON purchases
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_other_world();

-- As before, and: both sides of a transfer are of one world.
CREATE OR REPLACE FUNCTION refuse_one_side() RETURNS trigger LANGUAGE plpgsql
-- One plan, made once and kept while the tables grow: it must not read a table whole because that was small then.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    wrong bigint;
BEGIN
    SELECT w.transfer_id INTO wrong
    FROM written w
    LEFT JOIN transfers t ON t.id = w.transfer_id
    LEFT JOIN accounts a ON a.id = w.account_id
    GROUP BY w.transfer_id
    HAVING count(*) <> 2 OR sum(w.amount) <> 0 OR count(a.id) <> 2 OR bool_or(w.account_id = t.account_id) IS NOT TRUE
        OR count(*) FILTER (WHERE a.world = 'test') = 1 -- of its two sides
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'transfer % does not have two sides of one world that sum to zero', wrong USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;

-- As before, and: a child is of its parent's world.
CREATE OR REPLACE FUNCTION refuse_wider_key() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM api_keys p
    WHERE p.id = NEW.parent_id AND p.user_id = NEW.user_id AND p.world = NEW.world
        AND (p.revoked_at IS NULL OR NEW.revoked_at IS NOT NULL)
        AND (p.expires_at IS NULL OR NEW.expires_at <= p.expires_at)
        AND (p.scopes IS NULL OR NEW.scopes IS NOT NULL AND NOT EXISTS (
            SELECT FROM unnest(NEW.scopes) s
            WHERE s <> ALL (p.scopes) AND split_part(s, ':', 1) || ':*' <> ALL (p.scopes)
        ))
        AND (p.allowed_ips IS NULL OR NEW.allowed_ips IS NOT NULL AND NOT EXISTS (
            SELECT FROM unnest(NEW.allowed_ips) a WHERE NOT a <<= ANY (p.allowed_ips)
        ));
    IF NOT FOUND THEN
        RAISE EXCEPTION 'key % is wider than its parent', NEW.id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;

-- As before, and: a key spends from its user's account in its own world, into that world's revenue.
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
    cap key_cap;
    cap_left bigint;                -- by the tightest cap of the key and its ancestors
    tightest text;
    today date;
    fresh text[] := '{}';           -- keys whose last use is to be written anew
    use_name text;
    place integer := 0;
    first_place integer;
    -- What was accepted, column by column.
    taken integer[] := '{}'; accounts_of bigint[] := '{}'; tools text[] := '{}'; refs text[] := '{}';
    costs bigint[] := '{}'; units bigint[] := '{}'; prices integer[] := '{}'; key_ids text[] := '{}';
    reasons text[] := '{}'; worlds text[] := '{}';
    frees bigint[] := '{}'; versions bigint[] := '{}'; balances bigint[] := '{}';
    repeats integer[] := '{}'; repeat_of integer[] := '{}';
BEGIN
    -- A statement of its own: what is read after it is what committed before the locks were ours.
    PERFORM FROM api_keys k
    JOIN accounts a ON a.user_id = k.user_id AND a.world = k.world
    WHERE k.secret_hash = ANY (ARRAY(SELECT decode(g ->> 'hash', 'hex') FROM json_array_elements(asked) g))
    ORDER BY a.id
    FOR NO KEY UPDATE OF a;
    today := CAST(clock_timestamp() AT TIME ZONE 'UTC' AS date);

    FOR item IN
        SELECT g.at, g.tool, g.reference, g.units, g.cost, g.price_version, g.reason, k.id AS key_id,
            k.suspended, k.admitted, k.unused, k.caps,
            k.scopes IS NULL OR k.scopes && ARRAY['tools:*', 'tools:' || g.tool] AS in_scope,
            a.id AS account_id, a.world, a.balance, a.held, a.version, a.debt,
            a.frozen_at IS NOT NULL OR a.debt > 0 AS frozen, a.due_at <= clock_timestamp() AS due,
            e.kind AS earlier, e.id AS earlier_id, e.amount AS earlier_amount, e.units_milli AS earlier_units,
            e.free_after AS earlier_free, e.reason AS earlier_reason,
            count(*) OVER (PARTITION BY a.id, g.tool, g.reference) AS uses
        FROM json_to_recordset(asked) AS g (
            at integer, hash text, ip inet, tool text, reference text, units bigint, cost bigint, price_version integer,
            reason text
        )
        LEFT JOIN LATERAL (
            SELECT k.id, k.user_id, k.world, u.suspended_at IS NOT NULL AS suspended, k.scopes,
                k.allowed_ips IS NULL OR coalesce(g.ip <<= ANY (k.allowed_ips), false) AS admitted,
                coalesce(k.last_used_at < clock_timestamp() - interval '1 minute', true) AS unused,
                CASE
                    WHEN k.parent_id IS NOT NULL THEN ARRAY(SELECT c FROM key_caps(k.id, today) c)
                    WHEN k.cap_tokens IS NOT NULL THEN ARRAY[cap_of(k, today)]
                END AS caps
            FROM api_keys k
            JOIN users u ON u.id = k.user_id
            WHERE k.secret_hash = decode(g.hash, 'hex') AND k.revoked_at IS NULL
                AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
        ) k ON true
        LEFT JOIN accounts a ON a.user_id = k.user_id AND a.world = k.world
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
        IF item.caps IS NOT NULL THEN
            FOREACH cap IN ARRAY item.caps LOOP
                cap.used := coalesce((caps ->> cap.key_id)::bigint, cap.used);
                IF cap_left IS NULL OR cap.tokens - cap.used < cap_left THEN
                    cap_left := greatest(0, cap.tokens - cap.used); tightest := cap.per;
                END IF;
            END LOOP;
        END IF;
        IF item.unused AND item.admitted AND NOT item.suspended THEN
            fresh := fresh || item.key_id;
        END IF;

        IF item.key_id IS NULL THEN
            outcome := 'unknown';
        ELSIF item.suspended THEN
            outcome := 'suspended';
        ELSIF NOT item.admitted THEN
            outcome := 'elsewhere';
        ELSIF NOT item.in_scope THEN
            outcome := 'scope';
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
            outcome := 'capped'; tokens := cap_left; cap_per := tightest;
        ELSE
            here_balance := here_balance - item.cost;
            here_version := here_version + 1;
            place := place + 1;
            taken := taken || item.at; accounts_of := accounts_of || here; tools := tools || item.tool;
            refs := refs || item.reference; costs := costs || item.cost; units := units || item.units;
            prices := prices || item.price_version; key_ids := key_ids || item.key_id;
            frees := frees || (here_balance - item.held); versions := versions || here_version;
            balances := balances || here_balance; worlds := worlds || item.world;
            reasons := array_append(reasons, item.reason);
            IF item.uses > 1 THEN
                first_use := jsonb_set(first_use, ARRAY[use_name], to_jsonb(place));
            END IF;
            IF cap_left IS NOT NULL THEN
                FOREACH cap IN ARRAY item.caps LOOP
                    caps := jsonb_set(caps, ARRAY[cap.key_id], to_jsonb(
                        item.cost + coalesce((caps ->> cap.key_id)::bigint, cap.used)
                    ));
                    cap_windows := jsonb_set(cap_windows, ARRAY[cap.key_id], to_jsonb(cap.started));
                END LOOP;
            END IF;
            CONTINUE;
        END IF;
        RETURN NEXT;
    END LOOP;
    IF fresh <> '{}' THEN
        UPDATE api_keys SET last_used_at = clock_timestamp() WHERE id = ANY (fresh);
    END IF;
    IF place = 0 THEN
        RETURN;
    END IF;

    INSERT INTO accounts (kind, code, world)
    SELECT DISTINCT 'revenue', 'revenue:' || t.tool, t.world
    FROM unnest(tools, worlds) AS t (tool, world)
    WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.code = 'revenue:' || t.tool AND a.world = t.world)
    ON CONFLICT (code, world) DO NOTHING;

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
            (SELECT h.id FROM accounts h WHERE h.code = 'revenue:' || g.tool AND h.world = g.world) AS house_id,
            g.*
        FROM unnest(
            taken, accounts_of, tools, refs, costs, units, prices, key_ids, frees, versions, balances, reasons,
            worlds
        ) WITH ORDINALITY AS g (
            at, account_id, tool, reference, cost, units_milli, price_version, key_id, free_after, version,
            balance_after, reason, world, place
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
