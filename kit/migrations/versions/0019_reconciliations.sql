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
