-- How much of its tool's unit a job was quoted for, in thousandths: what its receipt and the usage say. Jobs from
-- before do not know it.
ALTER TABLE jobs
    ADD COLUMN units_milli bigint,
    ADD CONSTRAINT jobs_units_check CHECK (units_milli > 0);
