-- Operators and the log of what they did; vouchers; prices as versions.

CREATE TABLE operators (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    secret_hash BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    last_used_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT operators_pkey PRIMARY KEY (id),
    CONSTRAINT operators_secret_hash_key UNIQUE (secret_hash),
    CONSTRAINT operators_hash_only_check CHECK (octet_length(secret_hash) = 32),
    CONSTRAINT operators_name_check CHECK (length(name) BETWEEN 1 AND 100)
);
-- A name may be given again once its key is revoked; of two live ones the log could not tell whose hand it was.
CREATE UNIQUE INDEX operators_live_name_idx ON operators (name) WHERE revoked_at IS NULL;
CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON operators
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE operator_actions (
    id TEXT NOT NULL,
    at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    operator_id TEXT,
    name TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    user_id TEXT,
    before JSONB,
    after JSONB,
    reason TEXT,
    request_id TEXT,
    CONSTRAINT operator_actions_pkey PRIMARY KEY (id),
    CONSTRAINT operator_actions_operator_id_fkey FOREIGN KEY(operator_id) REFERENCES operators (id),
    CONSTRAINT operator_actions_user_id_fkey FOREIGN KEY(user_id) REFERENCES users (id),
    CONSTRAINT operator_actions_named_check CHECK (length(name) > 0 AND length(action) > 0 AND length(target) > 0)
);
CREATE INDEX operator_actions_user_idx ON operator_actions (user_id, id);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON operator_actions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE vouchers (
    id TEXT NOT NULL,
    code_hash BYTEA NOT NULL,
    hint TEXT NOT NULL,
    label TEXT NOT NULL,
    amount BIGINT NOT NULL,
    max_redemptions INTEGER NOT NULL,
    redemptions INTEGER DEFAULT 0 NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    credits_days INTEGER,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    disabled_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT vouchers_pkey PRIMARY KEY (id),
    CONSTRAINT vouchers_code_hash_key UNIQUE (code_hash),
    CONSTRAINT vouchers_hash_only_check CHECK (octet_length(code_hash) = 32),
    CONSTRAINT vouchers_amount_check CHECK (amount > 0 AND credits_days > 0),
    CONSTRAINT vouchers_used_up_check CHECK (max_redemptions > 0 AND redemptions BETWEEN 0 AND max_redemptions)
);
CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON vouchers
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE FUNCTION refuse_new_terms() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'what % % is worth is fixed', TG_TABLE_NAME, OLD.id USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER terms_are_fixed BEFORE UPDATE OF code_hash, amount, max_redemptions, expires_at, credits_days ON vouchers
    FOR EACH ROW EXECUTE FUNCTION refuse_new_terms();

CREATE TABLE voucher_redemptions (
    voucher_id TEXT NOT NULL,
    account_id BIGINT NOT NULL,
    transfer_id BIGINT NOT NULL,
    free_after BIGINT NOT NULL,
    credits_expire_at TIMESTAMP WITH TIME ZONE,
    redeemed_at TIMESTAMP WITH TIME ZONE DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT voucher_redemptions_pkey PRIMARY KEY (voucher_id, account_id),
    CONSTRAINT voucher_redemptions_transfer_id_key UNIQUE (transfer_id),
    CONSTRAINT voucher_redemptions_free_check CHECK (free_after >= 0),
    CONSTRAINT voucher_redemptions_voucher_id_fkey FOREIGN KEY(voucher_id) REFERENCES vouchers (id),
    CONSTRAINT voucher_redemptions_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT voucher_redemptions_transfer_id_fkey FOREIGN KEY(transfer_id) REFERENCES transfers (id)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON voucher_redemptions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A price is announced a minute ahead, so that every ingress replica knows it when it begins. The catalogue file
-- numbers its own versions up to 1000.
CREATE TABLE prices (
    version INTEGER GENERATED ALWAYS AS IDENTITY (START WITH 1001),
    tool TEXT NOT NULL,
    tokens BIGINT NOT NULL,
    per_units INTEGER NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    announced_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT prices_pkey PRIMARY KEY (version),
    CONSTRAINT prices_price_check CHECK (tokens > 0 AND per_units IN (1, 10, 100, 1000)),
    CONSTRAINT prices_announced_check CHECK (since >= announced_at + interval '1 minute')
);
CREATE INDEX prices_tool_idx ON prices (tool, since, version);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON prices
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
