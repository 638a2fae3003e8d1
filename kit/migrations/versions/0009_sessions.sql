-- Sign-in by e-mail: sessions, one-time codes, and the mails that wait to be sent.

-- A session is a row of `api_keys`: every statement that resolves a key resolves it too. It has no prefix, since
-- nobody reads or types it, always an end, and no other limit: it may do what its user may.
ALTER TABLE api_keys
    ADD COLUMN kind TEXT DEFAULT 'key' NOT NULL,
    ALTER COLUMN prefix DROP NOT NULL,
    ADD CONSTRAINT api_keys_kind_check CHECK (kind IN ('key', 'session')),
    ADD CONSTRAINT api_keys_prefix_check CHECK ((kind = 'key') = (prefix IS NOT NULL)),
    ADD CONSTRAINT api_keys_session_check CHECK (
        kind = 'key' OR expires_at IS NOT NULL AND num_nonnulls(parent_id, scopes, allowed_ips, cap_tokens) = 0
    );

ALTER TABLE users
    ADD COLUMN deleted_at TIMESTAMP WITH TIME ZONE,
    ADD CONSTRAINT users_deleted_is_nameless_check CHECK (deleted_at IS NULL OR email = 'deleted-' || id || '@invalid');

CREATE TABLE sign_in_codes (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    email TEXT NOT NULL,
    network TEXT,
    code_hmac BYTEA NOT NULL,
    tries SMALLINT DEFAULT 0 NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    consumed_at TIMESTAMP WITH TIME ZONE,
    voided_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT sign_in_codes_pkey PRIMARY KEY (id),
    CONSTRAINT sign_in_codes_hmac_only_check CHECK (octet_length(code_hmac) = 32),
    CONSTRAINT sign_in_codes_tries_check CHECK (tries BETWEEN 0 AND 5),
    CONSTRAINT sign_in_codes_one_end_check CHECK (consumed_at IS NULL OR voided_at IS NULL)
);

CREATE UNIQUE INDEX sign_in_codes_open_idx ON sign_in_codes (email) WHERE consumed_at IS NULL AND voided_at IS NULL;
CREATE INDEX sign_in_codes_created_at_idx ON sign_in_codes (created_at);

CREATE TABLE outbox (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    recipient TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT,
    html TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE,
    attempts SMALLINT DEFAULT 0 NOT NULL,
    retry_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    sent_at TIMESTAMP WITH TIME ZONE,
    dead_at TIMESTAMP WITH TIME ZONE,
    problem TEXT,
    CONSTRAINT outbox_pkey PRIMARY KEY (id),
    CONSTRAINT outbox_one_line_check CHECK (recipient !~ '[\r\n]' AND subject !~ '[\r\n]'),
    CONSTRAINT outbox_one_end_check CHECK (sent_at IS NULL OR dead_at IS NULL),
    CONSTRAINT outbox_forgets_check CHECK ((sent_at IS NULL AND dead_at IS NULL) = (body IS NOT NULL)),
    CONSTRAINT outbox_forgets_html_check CHECK (html IS NULL OR body IS NOT NULL)
);

CREATE INDEX outbox_retry_at_idx ON outbox (retry_at) WHERE sent_at IS NULL AND dead_at IS NULL;
CREATE INDEX outbox_created_at_idx ON outbox (created_at);
CREATE INDEX outbox_recipient_idx ON outbox (recipient);
