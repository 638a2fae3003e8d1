-- What each turn of a conversation took that a model worked on: also of those that failed or whose caller left.
CREATE TABLE chat_turns (
    id TEXT NOT NULL,
    hold_id TEXT NOT NULL,
    application TEXT NOT NULL,
    model TEXT NOT NULL,
    outcome TEXT NOT NULL,
    queue_ms BIGINT NOT NULL,
    run_ms BIGINT NOT NULL,
    busy_us BIGINT NOT NULL,
    on_gpu BOOLEAN NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT chat_turns_pkey PRIMARY KEY (id),
    CONSTRAINT chat_turns_hold_id_fkey FOREIGN KEY(hold_id) REFERENCES holds (id),
    CONSTRAINT chat_turns_hold_id_key UNIQUE (hold_id),
    CONSTRAINT chat_turns_outcome_check CHECK (outcome IN ('succeeded', 'failed', 'canceled')),
    CONSTRAINT chat_turns_measures_check CHECK (queue_ms >= 0 AND run_ms >= 0 AND busy_us >= 0),
    CONSTRAINT chat_turns_tokens_check CHECK (prompt_tokens >= 0 AND completion_tokens >= 0)
);
CREATE INDEX chat_turns_ended_at_idx ON chat_turns (ended_at);
