-- Files are deleted after a time, and their bytes with certainty; pictures and films have a small preview.

-- `expires_at`: when the file is deleted by itself; NULL keeps it. Files from before are kept until they are deleted.
-- `purged_at`: when the bytes of a deleted file were gone from the object store.
ALTER TABLE files
    ADD COLUMN preview_key TEXT,
    ADD COLUMN expires_at TIMESTAMP WITH TIME ZONE,
    ADD COLUMN purged_at TIMESTAMP WITH TIME ZONE,
    ADD CONSTRAINT files_preview_key_key UNIQUE (preview_key),
    ADD CONSTRAINT files_purged_check CHECK (purged_at IS NULL OR deleted_at IS NOT NULL);
CREATE INDEX files_expires_at_idx ON files (expires_at) WHERE deleted_at IS NULL;
CREATE INDEX files_unpurged_idx ON files (id) WHERE deleted_at IS NOT NULL AND purged_at IS NULL;
