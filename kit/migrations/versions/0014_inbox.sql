-- The inbox gives up on what no retry can apply; payments come back in parts; credits return after a won dispute.

ALTER TABLE provider_events
    ADD COLUMN dead_at TIMESTAMP WITH TIME ZONE,
    ADD CONSTRAINT provider_events_outcome_check CHECK (applied_at IS NULL OR dead_at IS NULL);
DROP INDEX provider_events_retry_at_idx;
CREATE INDEX provider_events_retry_at_idx ON provider_events (retry_at) WHERE applied_at IS NULL AND dead_at IS NULL;
CREATE INDEX provider_events_received_at_idx ON provider_events (received_at);
-- What was received stays as it was received.
CREATE TRIGGER kept_as_received BEFORE UPDATE OF provider, event_id, type, object_id, body, received_at ON provider_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

ALTER TABLE purchases
    ADD COLUMN price_version INTEGER,
    ADD COLUMN payment_id TEXT,
    ADD COLUMN paid_minor BIGINT,
    ADD COLUMN returned_minor BIGINT DEFAULT 0 NOT NULL,
    ADD COLUMN warned_at TIMESTAMP WITH TIME ZONE;
UPDATE purchases SET paid_minor = amount_minor WHERE fulfilled_at IS NOT NULL;
ALTER TABLE purchases
    ADD CONSTRAINT purchases_paid_check CHECK ((fulfilled_at IS NULL) = (paid_minor IS NULL) AND paid_minor >= 0),
    ADD CONSTRAINT purchases_returned_check CHECK (returned_minor BETWEEN 0 AND coalesce(paid_minor, 0)),
    ADD CONSTRAINT purchases_provider_payment_id_key UNIQUE (provider, payment_id);

-- Refunds and disputes of payments, each as far as it has come.
CREATE TABLE payment_returns (
    provider TEXT NOT NULL,
    return_id TEXT NOT NULL,
    purchase_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    amount_minor BIGINT NOT NULL,
    status TEXT NOT NULL,
    phase SMALLINT NOT NULL,
    stands BOOLEAN NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT payment_returns_pkey PRIMARY KEY (provider, return_id),
    CONSTRAINT payment_returns_kind_check CHECK (kind IN ('refund', 'dispute')),
    CONSTRAINT payment_returns_amount_check CHECK (amount_minor > 0),
    CONSTRAINT payment_returns_purchase_id_fkey FOREIGN KEY(purchase_id) REFERENCES purchases (id)
);
CREATE INDEX payment_returns_purchase_id_idx ON payment_returns (purchase_id);

-- Who a user is at a provider.
CREATE TABLE provider_customers (
    provider TEXT NOT NULL,
    user_id TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT provider_customers_pkey PRIMARY KEY (provider, user_id),
    CONSTRAINT provider_customers_provider_customer_id_key UNIQUE (provider, customer_id),
    CONSTRAINT provider_customers_user_id_fkey FOREIGN KEY(user_id) REFERENCES users (id)
);

-- A reinstatement gives back what a clawback took, or forgives what it made a user owe.
ALTER TABLE transfers
    DROP CONSTRAINT transfers_kind_check,
    DROP CONSTRAINT transfers_direction_check,
    DROP CONSTRAINT transfers_reverses_check,
    ADD CONSTRAINT transfers_reverses_check CHECK ((kind IN ('refund', 'reversal', 'reinstatement')) = (reverses_id IS NOT NULL)) NOT VALID,
    ADD CONSTRAINT transfers_kind_check CHECK (kind IN ('purchase', 'grant', 'referral', 'refund', 'spend', 'capture', 'expiry', 'clawback', 'debt', 'debt_payment', 'adjustment', 'reversal', 'reinstatement')) NOT VALID,
    ADD CONSTRAINT transfers_direction_check CHECK (kind IN ('adjustment', 'reversal', 'debt') OR (amount > 0) = (kind IN ('purchase', 'grant', 'referral', 'refund', 'reinstatement'))) NOT VALID;
ALTER TABLE transfers VALIDATE CONSTRAINT transfers_kind_check;
ALTER TABLE transfers VALIDATE CONSTRAINT transfers_direction_check;
ALTER TABLE transfers VALIDATE CONSTRAINT transfers_reverses_check;
