-- The ledger at full strength: every kind of transfer, grants and what was drawn on them, debts and freezes,
-- caps of keys, and the hash chain.

-- Accounts: what is owed, who may not spend, how far grants are worked out, and when the next one starts or ends.
ALTER TABLE accounts
    ADD COLUMN debt BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN frozen_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN allocated_version BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN due_at TIMESTAMP WITH TIME ZONE,
    DROP CONSTRAINT accounts_kind_check,
    DROP CONSTRAINT accounts_house_is_never_hot_check,
    ADD CONSTRAINT accounts_kind_check CHECK (kind IN ('user', 'revenue', 'clearing', 'promotion', 'mint', 'debt')),
    ADD CONSTRAINT accounts_house_is_never_hot_check CHECK (kind = 'user' OR (balance = 0 AND held = 0 AND version = 0 AND debt = 0)),
    ADD CONSTRAINT accounts_debt_check CHECK (debt >= 0),
    ADD CONSTRAINT accounts_allocated_check CHECK (allocated_version BETWEEN 0 AND version);
CREATE INDEX accounts_due_at_idx ON accounts (due_at) WHERE due_at IS NOT NULL;

-- Keys: the most that one may spend in a day, a month or altogether, and what it has spent of that.
ALTER TABLE api_keys
    ADD COLUMN cap_tokens BIGINT,
    ADD COLUMN cap_per TEXT,
    ADD COLUMN cap_window DATE,
    ADD COLUMN cap_used BIGINT DEFAULT 0 NOT NULL,
    ADD CONSTRAINT api_keys_cap_check CHECK ((cap_tokens IS NULL) = (cap_per IS NULL) AND cap_tokens >= 0 AND cap_per IN ('day', 'month', 'total')),
    ADD CONSTRAINT api_keys_within_cap_check CHECK (cap_used BETWEEN 0 AND coalesce(cap_tokens, cap_used));

ALTER TABLE holds
    ADD COLUMN key_id TEXT,
    ADD COLUMN cap_window DATE;

-- Transfers: the kinds, what one reverses, which key asked, for how many units, and what was free afterwards.
ALTER TABLE transfers
    ADD COLUMN reverses_id BIGINT,
    ADD COLUMN key_id TEXT,
    ADD COLUMN units_milli BIGINT,
    ADD COLUMN free_after BIGINT,
    -- The time of writing, not the transaction's start: under the account's lock it rises with the version.
    ALTER COLUMN created_at SET DEFAULT clock_timestamp(),
    DROP CONSTRAINT transfers_kind_check,
    DROP CONSTRAINT transfers_direction_check,
    DROP CONSTRAINT transfers_hold_id_key,
    ADD CONSTRAINT transfers_kind_check CHECK (kind IN ('purchase', 'grant', 'referral', 'refund', 'spend', 'capture', 'expiry', 'clawback', 'debt', 'debt_payment', 'adjustment', 'reversal')),
    ADD CONSTRAINT transfers_direction_check CHECK (kind IN ('adjustment', 'reversal', 'debt') OR (amount > 0) = (kind IN ('purchase', 'grant', 'referral', 'refund'))),
    ADD CONSTRAINT transfers_reverses_check CHECK ((kind IN ('refund', 'reversal')) = (reverses_id IS NOT NULL)),
    ADD CONSTRAINT transfers_spend_check CHECK ((kind = 'spend') = (units_milli IS NOT NULL AND free_after IS NOT NULL)),
    ADD CONSTRAINT transfers_units_check CHECK (units_milli > 0 AND free_after >= 0),
    ADD CONSTRAINT transfers_reverses_id_fkey FOREIGN KEY(reverses_id) REFERENCES transfers (id);
-- Most transfers have neither: an index over all of them would cost every spend a write.
CREATE UNIQUE INDEX transfers_hold_id_idx ON transfers (hold_id) WHERE hold_id IS NOT NULL;
CREATE INDEX transfers_reverses_id_idx ON transfers (reverses_id) WHERE reverses_id IS NOT NULL;
CREATE UNIQUE INDEX transfers_reversal_idx ON transfers (reverses_id) WHERE kind = 'reversal';

-- Grants: lots of credit with an order in which they burn.
CREATE TABLE grants (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    account_id BIGINT NOT NULL,
    source TEXT NOT NULL,
    reference TEXT NOT NULL,
    house TEXT NOT NULL,
    reason TEXT,
    purchase_id TEXT,
    amount BIGINT NOT NULL,
    remaining BIGINT NOT NULL,
    clawed BIGINT DEFAULT 0 NOT NULL,
    priority SMALLINT NOT NULL,
    starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    transfer_id BIGINT,
    opened_version BIGINT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT grants_pkey PRIMARY KEY (id),
    CONSTRAINT grants_account_id_source_reference_key UNIQUE (account_id, source, reference),
    CONSTRAINT grants_transfer_id_key UNIQUE (transfer_id),
    CONSTRAINT grants_source_check CHECK (source IN ('purchase', 'grant', 'referral', 'adjustment')),
    CONSTRAINT grants_remaining_check CHECK (amount > 0 AND remaining BETWEEN 0 AND amount),
    CONSTRAINT grants_clawed_check CHECK (clawed BETWEEN 0 AND amount),
    CONSTRAINT grants_opened_check CHECK ((transfer_id IS NULL) = (opened_version IS NULL)),
    CONSTRAINT grants_expires_check CHECK (expires_at > starts_at),
    CONSTRAINT grants_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT grants_transfer_id_fkey FOREIGN KEY(transfer_id) REFERENCES transfers (id)
);
CREATE INDEX grants_live_idx ON grants (account_id) WHERE remaining > 0;
-- One grant for each payment and account: what a clawback takes from is never in doubt.
CREATE UNIQUE INDEX grants_purchase_id_idx ON grants (purchase_id, account_id) WHERE purchase_id IS NOT NULL;
ALTER TABLE grants SET (fillfactor = 70);

-- What debits drew on which grant; a refund gives back with a negative amount. A run of versions that drew on one
-- grant alone is one row: thousands of small spends need no row each.
CREATE TABLE draws (
    account_id BIGINT NOT NULL,
    from_version BIGINT NOT NULL,
    grant_id BIGINT NOT NULL,
    to_version BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    CONSTRAINT draws_pkey PRIMARY KEY (account_id, from_version, grant_id),
    CONSTRAINT draws_amount_check CHECK (amount <> 0),
    CONSTRAINT draws_run_check CHECK (from_version <= to_version),
    CONSTRAINT draws_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT draws_grant_id_fkey FOREIGN KEY(grant_id) REFERENCES grants (id)
);
CREATE INDEX draws_grant_id_idx ON draws (grant_id);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON draws
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON grants
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Money that came in before grants were kept: one grant for each of those transfers, drawn on when next worked out.
INSERT INTO grants (account_id, source, reference, house, reason, purchase_id, amount, remaining, priority, starts_at, transfer_id, opened_version)
SELECT t.account_id, t.kind, t.reference, h.code, t.reason, CASE WHEN t.kind = 'purchase' THEN t.reference END,
    t.amount, t.amount, CASE WHEN t.kind = 'purchase' THEN 100 ELSE 50 END, t.event_at, t.id, e.version
FROM transfers t
JOIN entries e ON e.transfer_id = t.id AND e.account_id = t.account_id
JOIN entries o ON o.transfer_id = t.id AND o.account_id <> t.account_id
JOIN accounts h ON h.id = o.account_id
WHERE t.kind IN ('purchase', 'grant')
ORDER BY t.id;

-- The chain: blocks of transfers and entries, each sealed with the hash of the one before.
CREATE TABLE chain_blocks (
    number BIGINT NOT NULL,
    after_id BIGINT NOT NULL,
    to_id BIGINT NOT NULL,
    transfers BIGINT NOT NULL,
    entries BIGINT NOT NULL,
    content BYTEA NOT NULL,
    prev_hash BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    sealed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT chain_blocks_pkey PRIMARY KEY (number),
    CONSTRAINT chain_blocks_range_check CHECK (number >= 1 AND after_id < to_id AND transfers > 0 AND entries >= 0),
    CONSTRAINT chain_blocks_digests_check CHECK (octet_length(content) = 32 AND octet_length(prev_hash) = 32 AND octet_length(hash) = 32)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON chain_blocks
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TABLE chain_mark (
    one BOOLEAN DEFAULT true NOT NULL,
    up_to BIGINT NOT NULL,
    xid BIGINT NOT NULL,
    CONSTRAINT chain_mark_pkey PRIMARY KEY (one),
    CONSTRAINT chain_mark_one_check CHECK (one)
);

-- A writer of transfers holds a transaction id before it takes its first number from the sequence: once every
-- transaction older than a mark has ended, no number up to that mark can still appear.
CREATE FUNCTION hold_transaction_id() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_current_xact_id();
    RETURN NULL;
END
$$;
CREATE TRIGGER number_under_transaction_id BEFORE INSERT ON transfers
    FOR EACH STATEMENT EXECUTE FUNCTION hold_transaction_id();

-- Both sides or none. A foreign key locks the row that it points to, so that two writers of one batch each would meet
-- on the house account's row, the one that must never be hot. Accounts and transfers are never deleted: a look
-- at them is enough, and one look for a whole statement also sees that its transfers balance.
ALTER TABLE entries
    DROP CONSTRAINT entries_account_id_fkey,
    DROP CONSTRAINT entries_transfer_id_fkey;
CREATE FUNCTION refuse_one_side() RETURNS trigger LANGUAGE plpgsql
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
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'transfer % does not have two sides that sum to zero', wrong USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER two_sides AFTER INSERT ON entries
    REFERENCING NEW TABLE AS written FOR EACH STATEMENT EXECUTE FUNCTION refuse_one_side();
