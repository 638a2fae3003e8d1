-- Accounts take turns in the queue; jobs have a priority within their account and may have a deadline.
ALTER TABLE jobs
    ADD COLUMN priority smallint NOT NULL DEFAULT 0,
    ADD COLUMN deadline timestamptz,
    ADD CONSTRAINT jobs_priority_check CHECK (priority BETWEEN -1 AND 1);

DROP INDEX jobs_queue_idx;
CREATE INDEX jobs_line_idx ON jobs (application, account_id, priority DESC, id) WHERE status = 'queued';
CREATE INDEX jobs_waiting_idx ON jobs (expires_at) WHERE status = 'queued';
CREATE INDEX jobs_running_idx ON jobs (account_id, key_id) WHERE status = 'running';

-- Virtual times of the last turn of each account: where it began and ended. It refers to nothing: the check of a
-- reference would wait for whoever holds an account's lock, and every claim behind it.
CREATE TABLE queue_turns (
    application text NOT NULL,
    account_id bigint NOT NULL,
    begun bigint NOT NULL,
    ended bigint NOT NULL,
    PRIMARY KEY (application, account_id),
    CONSTRAINT queue_turns_times_check CHECK (begun >= 0 AND ended > begun)
);
CREATE INDEX queue_turns_clock_idx ON queue_turns (application, begun);

-- What an operator gave an account beyond the common share.
CREATE TABLE account_shares (
    account_id bigint PRIMARY KEY REFERENCES accounts (id),
    weight smallint NOT NULL DEFAULT 1,
    max_running integer,
    CONSTRAINT account_shares_weight_check CHECK (weight BETWEEN 1 AND 100),
    CONSTRAINT account_shares_running_check CHECK (max_running > 0)
);
