-- What each attempt at a job took: also of those that failed or were canceled, which nobody pays for.
CREATE TABLE job_attempts (
    job_id TEXT NOT NULL,
    fence BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    queue_ms BIGINT NOT NULL,
    run_ms BIGINT NOT NULL,
    busy_us BIGINT NOT NULL,
    on_gpu BOOLEAN NOT NULL,
    peak_memory_bytes BIGINT,
    batch_size SMALLINT NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT job_attempts_pkey PRIMARY KEY (job_id, fence),
    CONSTRAINT job_attempts_job_id_fkey FOREIGN KEY(job_id) REFERENCES jobs (id),
    CONSTRAINT job_attempts_outcome_check CHECK (outcome IN ('succeeded', 'failed', 'canceled')),
    CONSTRAINT job_attempts_measures_check CHECK (
        queue_ms >= 0 AND run_ms >= 0 AND busy_us >= 0 AND peak_memory_bytes >= 0 AND batch_size > 0
    )
);
CREATE INDEX job_attempts_ended_at_idx ON job_attempts (ended_at);
