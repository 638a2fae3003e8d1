-- What a provider's record said beside the books, when, and what was left of the differences.

CREATE TABLE reconciliations (
    id TEXT NOT NULL,
    scheduled BOOLEAN NOT NULL,
    repairs BOOLEAN NOT NULL,
    since TIMESTAMP WITH TIME ZONE NOT NULL,
    until TIMESTAMP WITH TIME ZONE NOT NULL,
    began_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    payments INTEGER DEFAULT 0 NOT NULL,
    differences INTEGER DEFAULT 0 NOT NULL,
    repaired INTEGER DEFAULT 0 NOT NULL,
    report JSONB,
    CONSTRAINT reconciliations_pkey PRIMARY KEY (id),
    CONSTRAINT reconciliations_range_check CHECK (since < until),
    CONSTRAINT reconciliations_counts_check CHECK (payments >= 0 AND differences >= 0 AND repaired >= 0),
    CONSTRAINT reconciliations_repaired_check CHECK (repairs OR repaired = 0),
    CONSTRAINT reconciliations_ended_whole_check CHECK ((ended_at IS NULL) = (report IS NULL))
);
CREATE INDEX reconciliations_scheduled_idx ON reconciliations (began_at) WHERE scheduled;
CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON reconciliations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE FUNCTION refuse_new_report() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'reconciliation % has ended', OLD.id USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER ended_for_good BEFORE UPDATE ON reconciliations
    FOR EACH ROW WHEN (OLD.ended_at IS NOT NULL) EXECUTE FUNCTION refuse_new_report();

-- Who has an account pays into it from a wallet, and gets no second key.
ALTER TABLE x402_payments ADD COLUMN topup_user_id TEXT;
ALTER TABLE x402_payments
    ADD CONSTRAINT x402_payments_topup_user_id_fkey FOREIGN KEY(topup_user_id) REFERENCES users (id),
    DROP CONSTRAINT x402_payments_settled_whole_check,
    ADD CONSTRAINT x402_payments_settled_whole_check
        CHECK ((state = 'settled') = (settled_at IS NOT NULL) AND (state = 'settled') = (transaction_hash IS NOT NULL)
            AND (state = 'settled') = (purchase_id IS NOT NULL)
            AND (state = 'settled' AND topup_user_id IS NULL) = (key_id IS NOT NULL));
DROP TRIGGER terms_are_fixed ON x402_payments;
CREATE TRIGGER terms_are_fixed BEFORE UPDATE OF network, asset, payer, nonce, quote_hash, resource, fingerprint, retry_key,
    package_code, price_version, credits_tokens, amount_minor, key_days, topup_user_id, payload ON x402_payments
    FOR EACH ROW EXECUTE FUNCTION refuse_new_terms();
