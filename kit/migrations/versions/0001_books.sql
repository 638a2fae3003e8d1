-- The first schema: users and keys, the books, purchases, jobs and files.

CREATE TABLE provider_events (
    provider TEXT NOT NULL,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    object_id TEXT,
    body BYTEA NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    applied_at TIMESTAMP WITH TIME ZONE,
    attempts INTEGER DEFAULT 0 NOT NULL,
    retry_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    problem TEXT,
    CONSTRAINT provider_events_pkey PRIMARY KEY (provider, event_id)
);

CREATE INDEX provider_events_retry_at_idx ON provider_events (retry_at) WHERE applied_at IS NULL;

CREATE TABLE users (
    id TEXT NOT NULL,
    email TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    suspended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT users_pkey PRIMARY KEY (id),
    CONSTRAINT users_email_check CHECK (email = lower(email) AND length(email) BETWEEN 3 AND 254),
    CONSTRAINT users_email_key UNIQUE (email)
);

CREATE TABLE accounts (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    kind TEXT NOT NULL,
    user_id TEXT,
    code TEXT,
    balance BIGINT DEFAULT 0 NOT NULL,
    held BIGINT DEFAULT 0 NOT NULL,
    version BIGINT DEFAULT 0 NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT accounts_pkey PRIMARY KEY (id),
    CONSTRAINT accounts_kind_check CHECK (kind IN ('user', 'revenue', 'clearing', 'promotion')),
    CONSTRAINT accounts_owner_check CHECK ((kind = 'user') = (user_id IS NOT NULL) AND (kind = 'user') = (code IS NULL)),
    CONSTRAINT accounts_never_overdrawn_check CHECK (0 <= held AND held <= balance),
    CONSTRAINT accounts_house_is_never_hot_check CHECK (kind = 'user' OR (balance = 0 AND held = 0 AND version = 0)),
    CONSTRAINT accounts_user_id_key UNIQUE (user_id),
    CONSTRAINT accounts_user_id_fkey FOREIGN KEY(user_id) REFERENCES users (id),
    CONSTRAINT accounts_code_key UNIQUE (code)
);

CREATE TABLE api_keys (
    id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    label TEXT NOT NULL,
    prefix TEXT NOT NULL,
    secret_hash BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT api_keys_pkey PRIMARY KEY (id),
    CONSTRAINT api_keys_hash_only_check CHECK (octet_length(secret_hash) = 32),
    CONSTRAINT api_keys_label_check CHECK (length(label) BETWEEN 1 AND 100),
    CONSTRAINT api_keys_user_id_fkey FOREIGN KEY(user_id) REFERENCES users (id),
    CONSTRAINT api_keys_prefix_key UNIQUE (prefix),
    CONSTRAINT api_keys_secret_hash_key UNIQUE (secret_hash)
);

CREATE INDEX api_keys_user_id_idx ON api_keys (user_id);

CREATE TABLE holds (
    id TEXT NOT NULL,
    account_id BIGINT NOT NULL,
    tool TEXT NOT NULL,
    reference TEXT NOT NULL,
    amount BIGINT NOT NULL,
    captured BIGINT DEFAULT 0 NOT NULL,
    state TEXT DEFAULT 'pending' NOT NULL,
    price_version INTEGER NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    resolved_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT holds_pkey PRIMARY KEY (id),
    CONSTRAINT holds_account_id_tool_reference_key UNIQUE (account_id, tool, reference),
    CONSTRAINT holds_captured_within_check CHECK (amount > 0 AND captured BETWEEN 0 AND amount),
    CONSTRAINT holds_state_check CHECK (state IN ('pending', 'captured', 'voided', 'expired')),
    CONSTRAINT holds_captured_state_check CHECK ((state = 'captured') = (captured > 0)),
    CONSTRAINT holds_resolved_check CHECK ((state = 'pending') = (resolved_at IS NULL)),
    CONSTRAINT holds_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id)
);

CREATE INDEX holds_account_id_idx ON holds (account_id) WHERE state = 'pending';
CREATE INDEX holds_expires_at_idx ON holds (expires_at) WHERE state = 'pending';

CREATE TABLE idempotency (
    account_id BIGINT NOT NULL,
    route TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    answer JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT idempotency_pkey PRIMARY KEY (account_id, route, key),
    CONSTRAINT idempotency_key_check CHECK (length(key) BETWEEN 1 AND 255),
    CONSTRAINT idempotency_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id)
);

CREATE INDEX idempotency_created_at_idx ON idempotency (created_at);

CREATE TABLE jobs (
    id TEXT NOT NULL,
    account_id BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    task TEXT NOT NULL,
    tool TEXT NOT NULL,
    application TEXT NOT NULL,
    input JSONB NOT NULL,
    status TEXT DEFAULT 'queued' NOT NULL,
    quoted BIGINT NOT NULL,
    charged BIGINT,
    hold_id TEXT NOT NULL,
    attempts SMALLINT DEFAULT 0 NOT NULL,
    runner TEXT,
    fence BIGINT DEFAULT 0 NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    cancel_requested_at TIMESTAMP WITH TIME ZONE,
    progress_percent SMALLINT DEFAULT 0 NOT NULL,
    output JSONB,
    error_code TEXT,
    error_message TEXT,
    metrics JSONB,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    finished_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT jobs_pkey PRIMARY KEY (id),
    CONSTRAINT jobs_status_check CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'expired')),
    CONSTRAINT jobs_running_has_lease_check CHECK ((status = 'running') = (lease_until IS NOT NULL)),
    CONSTRAINT jobs_finished_check CHECK ((status IN ('queued', 'running')) = (finished_at IS NULL)),
    CONSTRAINT jobs_output_check CHECK ((status = 'succeeded') = (output IS NOT NULL)),
    CONSTRAINT jobs_error_check CHECK ((status = 'failed') <= (error_code IS NOT NULL)),
    CONSTRAINT jobs_charged_only_for_success_check CHECK ((charged IS NULL) = (finished_at IS NULL) AND charged BETWEEN 0 AND quoted AND (status = 'succeeded' OR charged = 0)),
    CONSTRAINT jobs_progress_check CHECK (progress_percent BETWEEN 0 AND 100),
    CONSTRAINT jobs_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT jobs_key_id_fkey FOREIGN KEY(key_id) REFERENCES api_keys (id),
    CONSTRAINT jobs_hold_id_key UNIQUE (hold_id),
    CONSTRAINT jobs_hold_id_fkey FOREIGN KEY(hold_id) REFERENCES holds (id)
);

CREATE INDEX jobs_account_idx ON jobs (account_id, id);
CREATE INDEX jobs_lease_idx ON jobs (lease_until) WHERE status = 'running';
CREATE INDEX jobs_queue_idx ON jobs (application, id) WHERE status = 'queued';

CREATE TABLE transfers (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    kind TEXT NOT NULL,
    account_id BIGINT NOT NULL,
    tool TEXT NOT NULL,
    reference TEXT NOT NULL,
    amount BIGINT NOT NULL,
    hold_id TEXT,
    price_version INTEGER,
    reason TEXT,
    event_at TIMESTAMP WITH TIME ZONE NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT transfers_pkey PRIMARY KEY (id),
    CONSTRAINT transfers_account_id_tool_reference_key UNIQUE (account_id, tool, reference),
    CONSTRAINT transfers_kind_check CHECK (kind IN ('purchase', 'grant', 'capture')),
    CONSTRAINT transfers_amount_check CHECK (amount <> 0),
    CONSTRAINT transfers_direction_check CHECK ((amount > 0) = (kind IN ('purchase', 'grant'))),
    CONSTRAINT transfers_capture_has_hold_check CHECK ((kind = 'capture') = (hold_id IS NOT NULL)),
    CONSTRAINT transfers_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT transfers_hold_id_key UNIQUE (hold_id),
    CONSTRAINT transfers_hold_id_fkey FOREIGN KEY(hold_id) REFERENCES holds (id)
);

CREATE TABLE entries (
    account_id BIGINT NOT NULL,
    version BIGINT NOT NULL,
    transfer_id BIGINT NOT NULL,
    amount BIGINT NOT NULL,
    balance_after BIGINT,
    CONSTRAINT entries_pkey PRIMARY KEY (account_id, version),
    CONSTRAINT entries_amount_check CHECK (amount <> 0),
    CONSTRAINT entries_never_overdrawn_check CHECK (balance_after >= 0),
    CONSTRAINT entries_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT entries_transfer_id_fkey FOREIGN KEY(transfer_id) REFERENCES transfers (id)
);

CREATE INDEX entries_transfer_id_idx ON entries (transfer_id);

CREATE TABLE files (
    id TEXT NOT NULL,
    account_id BIGINT NOT NULL,
    job_id TEXT,
    name TEXT NOT NULL,
    storage_key TEXT NOT NULL,
    content_type TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    facts JSONB DEFAULT '{}' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    deleted_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT files_pkey PRIMARY KEY (id),
    CONSTRAINT files_size_check CHECK (size_bytes >= 0),
    CONSTRAINT files_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT files_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id),
    CONSTRAINT files_storage_key_key UNIQUE (storage_key)
);

CREATE INDEX files_account_idx ON files (account_id, id) WHERE deleted_at IS NULL;
CREATE INDEX files_job_id_idx ON files (job_id);

CREATE TABLE purchases (
    id TEXT NOT NULL,
    provider TEXT NOT NULL,
    session_id TEXT,
    email TEXT NOT NULL,
    topup_user_id TEXT,
    package_code TEXT NOT NULL,
    credits_tokens BIGINT NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    user_id TEXT,
    opened_account BOOLEAN,
    transfer_id BIGINT,
    fulfilled_at TIMESTAMP WITH TIME ZONE,
    key_id TEXT,
    claimed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT purchases_pkey PRIMARY KEY (id),
    CONSTRAINT purchases_provider_session_id_key UNIQUE (provider, session_id),
    CONSTRAINT purchases_amounts_check CHECK (credits_tokens > 0 AND amount_minor > 0),
    CONSTRAINT purchases_fulfilled_whole_check CHECK ((fulfilled_at IS NULL) = (transfer_id IS NULL) AND (fulfilled_at IS NULL) = (user_id IS NULL) AND (fulfilled_at IS NULL) = (opened_account IS NULL)),
    CONSTRAINT purchases_claimed_whole_check CHECK ((claimed_at IS NULL) = (key_id IS NULL)),
    CONSTRAINT purchases_claim_needs_new_account_check CHECK (claimed_at IS NULL OR opened_account),
    CONSTRAINT purchases_topup_user_id_fkey FOREIGN KEY(topup_user_id) REFERENCES users (id),
    CONSTRAINT purchases_user_id_fkey FOREIGN KEY(user_id) REFERENCES users (id),
    CONSTRAINT purchases_transfer_id_key UNIQUE (transfer_id),
    CONSTRAINT purchases_transfer_id_fkey FOREIGN KEY(transfer_id) REFERENCES transfers (id),
    CONSTRAINT purchases_key_id_key UNIQUE (key_id),
    CONSTRAINT purchases_key_id_fkey FOREIGN KEY(key_id) REFERENCES api_keys (id)
);

-- Updates of a balance stay on the page of the row (heap-only tuples): no index names a column that they change.
ALTER TABLE accounts SET (fillfactor = 50);

-- Append-only: what was written of a movement stays, also for whoever owns the table.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfers
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON holds
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- A hold resolves once, a job ends once, a purchase is fulfilled once: the first outcome stands.
CREATE FUNCTION refuse_second_outcome() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% % has its outcome already', TG_TABLE_NAME, OLD.id USING ERRCODE = 'restrict_violation';
END
$$;
CREATE TRIGGER resolves_once BEFORE UPDATE ON holds
    FOR EACH ROW WHEN (OLD.state <> 'pending') EXECUTE FUNCTION refuse_second_outcome();
CREATE TRIGGER amount_is_fixed BEFORE UPDATE OF account_id, tool, reference, amount ON holds
    FOR EACH ROW EXECUTE FUNCTION refuse_second_outcome();
CREATE TRIGGER ends_once BEFORE UPDATE OF status, charged, output ON jobs
    FOR EACH ROW WHEN (OLD.finished_at IS NOT NULL) EXECUTE FUNCTION refuse_second_outcome();
CREATE TRIGGER fulfilled_once BEFORE UPDATE OF user_id, opened_account, transfer_id, fulfilled_at ON purchases
    FOR EACH ROW WHEN (OLD.fulfilled_at IS NOT NULL) EXECUTE FUNCTION refuse_second_outcome();
CREATE TRIGGER claimed_once BEFORE UPDATE OF key_id, claimed_at ON purchases
    FOR EACH ROW WHEN (OLD.claimed_at IS NOT NULL) EXECUTE FUNCTION refuse_second_outcome();
