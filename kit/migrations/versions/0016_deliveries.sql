-- Webhooks to customers, and the alert of a low balance that travels by them.

ALTER TABLE jobs
    ADD COLUMN webhook_url TEXT,
    ADD COLUMN webhook_events TEXT[],
    ADD CONSTRAINT jobs_webhook_check CHECK (webhook_events IS NULL OR webhook_url IS NOT NULL);

-- An endpoint without a URL signs what goes to the URLs that jobs and alerts name: an account has one at most.
-- Secrets are derived from the salts and the server's own secret, so that neither alone forges anything.
CREATE TABLE webhook_endpoints (
    id TEXT NOT NULL,
    account_id BIGINT NOT NULL,
    url TEXT,
    events TEXT[],
    salt BYTEA NOT NULL,
    old_salt BYTEA,
    old_until TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    disabled_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT webhook_endpoints_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_endpoints_account_id_url_key UNIQUE NULLS NOT DISTINCT (account_id, url),
    CONSTRAINT webhook_endpoints_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT webhook_endpoints_salts_check CHECK (octet_length(salt) = 32 AND octet_length(old_salt) = 32),
    CONSTRAINT webhook_endpoints_overlap_check CHECK ((old_salt IS NULL) = (old_until IS NULL)),
    CONSTRAINT webhook_endpoints_events_check CHECK (cardinality(events) > 0)
);

-- What is told to an endpoint: written with its cause, sent apart, the same body under the same id at every attempt.
CREATE TABLE webhook_deliveries (
    id TEXT NOT NULL,
    account_id BIGINT NOT NULL,
    endpoint_id TEXT NOT NULL,
    url TEXT NOT NULL,
    event TEXT NOT NULL,
    job_id TEXT,
    body TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    attempts SMALLINT DEFAULT 0 NOT NULL,
    retry_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    delivered_at TIMESTAMP WITH TIME ZONE,
    given_up_at TIMESTAMP WITH TIME ZONE,
    status_code SMALLINT,
    problem TEXT,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (id),
    CONSTRAINT webhook_deliveries_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT webhook_deliveries_endpoint_id_fkey FOREIGN KEY(endpoint_id) REFERENCES webhook_endpoints (id)
        ON DELETE CASCADE,
    CONSTRAINT webhook_deliveries_attempts_check CHECK (attempts >= 0),
    CONSTRAINT webhook_deliveries_one_end_check CHECK (delivered_at IS NULL OR given_up_at IS NULL)
);
CREATE INDEX webhook_deliveries_due_idx ON webhook_deliveries (retry_at)
    WHERE delivered_at IS NULL AND given_up_at IS NULL;
CREATE INDEX webhook_deliveries_account_idx ON webhook_deliveries (account_id, id);
CREATE INDEX webhook_deliveries_endpoint_id_idx ON webhook_deliveries (endpoint_id);
CREATE INDEX webhook_deliveries_created_at_idx ON webhook_deliveries (created_at);

-- `armed`: the free balance was last seen at the threshold or above. `alerted_version`: the account's version when it
-- was found below, kept until credits have come in and lifted it again.
CREATE TABLE balance_alerts (
    account_id BIGINT NOT NULL,
    threshold BIGINT NOT NULL,
    webhook_url TEXT,
    armed BOOLEAN NOT NULL,
    alerted_version BIGINT,
    alerted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT balance_alerts_pkey PRIMARY KEY (account_id),
    CONSTRAINT balance_alerts_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT balance_alerts_threshold_check CHECK (threshold > 0),
    CONSTRAINT balance_alerts_armed_check CHECK (NOT armed OR alerted_version IS NULL)
);
