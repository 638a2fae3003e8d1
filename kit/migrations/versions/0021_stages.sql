-- A job in stages: how far each is, for the owner, and what they made, for the runner that goes on.
ALTER TABLE jobs ADD COLUMN stages jsonb;

-- Written under the lease whose fence it names, and never changed; deleted with its bytes once the job has ended.
CREATE TABLE job_stages (
    job_id text NOT NULL,
    stage text NOT NULL,
    part integer NOT NULL,
    fence bigint NOT NULL,
    storage_key text NOT NULL,
    facts jsonb NOT NULL DEFAULT '{}',
    run_ms bigint NOT NULL,
    gpu_ms bigint NOT NULL,
    peak_memory_bytes bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (job_id, stage, part),
    CONSTRAINT job_stages_job_id_fkey FOREIGN KEY (job_id) REFERENCES jobs (id),
    CONSTRAINT job_stages_storage_key_key UNIQUE (storage_key),
    CONSTRAINT job_stages_part_check CHECK (part >= 0),
    CONSTRAINT job_stages_took_check CHECK (run_ms >= 0 AND gpu_ms >= 0 AND peak_memory_bytes >= 0)
);
