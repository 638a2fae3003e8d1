-- A wallet's signed payment is written down before it is settled, once for each nonce.

CREATE TABLE x402_payments (
    id TEXT NOT NULL,
    network TEXT NOT NULL,
    asset TEXT NOT NULL,
    payer TEXT NOT NULL,
    nonce TEXT NOT NULL,
    quote_hash BYTEA NOT NULL,
    resource TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    retry_key TEXT,
    package_code TEXT NOT NULL,
    price_version INTEGER NOT NULL,
    credits_tokens BIGINT NOT NULL,
    amount_minor BIGINT NOT NULL,
    key_label TEXT NOT NULL,
    key_days INTEGER,
    payload JSONB NOT NULL,
    state TEXT DEFAULT 'settling' NOT NULL,
    attempts INTEGER DEFAULT 1 NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    problem TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    settled_at TIMESTAMP WITH TIME ZONE,
    transaction_hash TEXT,
    purchase_id TEXT,
    key_id TEXT,
    CONSTRAINT x402_payments_pkey PRIMARY KEY (id),
    CONSTRAINT x402_payments_payer_nonce_asset_network_key UNIQUE (payer, nonce, asset, network),
    CONSTRAINT x402_payments_purchase_id_key UNIQUE (purchase_id),
    CONSTRAINT x402_payments_key_id_key UNIQUE (key_id),
    CONSTRAINT x402_payments_purchase_id_fkey FOREIGN KEY(purchase_id) REFERENCES purchases (id),
    CONSTRAINT x402_payments_key_id_fkey FOREIGN KEY(key_id) REFERENCES api_keys (id),
    CONSTRAINT x402_payments_spelling_check
        CHECK (payer ~ '^0x[0-9a-f]{40}$' AND nonce ~ '^0x[0-9a-f]{64}$' AND octet_length(quote_hash) = 32),
    CONSTRAINT x402_payments_amounts_check CHECK (credits_tokens > 0 AND amount_minor > 0 AND key_days > 0),
    CONSTRAINT x402_payments_state_check
        CHECK (state IN ('settling', 'settled', 'refused', 'unclear') AND attempts > 0),
    CONSTRAINT x402_payments_settled_whole_check
        CHECK ((state = 'settled') = (settled_at IS NOT NULL) AND (state = 'settled') = (transaction_hash IS NOT NULL)
            AND (state = 'settled') = (purchase_id IS NOT NULL) AND (state = 'settled') = (key_id IS NOT NULL))
);
CREATE INDEX x402_payments_due_at_idx ON x402_payments (due_at) WHERE state = 'settling';
-- One idempotency key is one payment, also when its caller, who heard no answer, signed a second.
CREATE UNIQUE INDEX x402_payments_retry_key_idx ON x402_payments (payer, network, resource, retry_key)
    WHERE state <> 'refused';
CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON x402_payments
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER terms_are_fixed BEFORE UPDATE OF network, asset, payer, nonce, quote_hash, resource, fingerprint, retry_key,
    package_code, price_version, credits_tokens, amount_minor, key_days, payload ON x402_payments
    FOR EACH ROW EXECUTE FUNCTION refuse_new_terms();
-- Money that arrived was granted: nothing takes that back here.
CREATE FUNCTION refuse_unsettling() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'payment % is settled for good', OLD.id USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER settled_for_good BEFORE UPDATE ON x402_payments
    FOR EACH ROW WHEN (OLD.state = 'settled') EXECUTE FUNCTION refuse_unsettling();
