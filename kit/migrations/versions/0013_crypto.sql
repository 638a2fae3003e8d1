-- A coin payment may come short, over or late. The books keep what the provider last said to have received, when its
-- session closed, and when it is asked again if no event brings news.
ALTER TABLE purchases
    ADD COLUMN received_minor bigint NOT NULL DEFAULT 0,
    ADD COLUMN closed_at timestamptz,
    ADD COLUMN look_at timestamptz,
    ADD COLUMN looks integer NOT NULL DEFAULT 0,
    ADD CONSTRAINT purchases_received_check CHECK (received_minor >= 0 AND looks >= 0),
    ADD CONSTRAINT purchases_look_check CHECK (look_at IS NULL OR session_id IS NOT NULL);

CREATE INDEX purchases_look_at_idx ON purchases (look_at) WHERE look_at IS NOT NULL;

-- What was granted before was received whole: until now nothing else was granted.
UPDATE purchases SET received_minor = amount_minor WHERE fulfilled_at IS NOT NULL;
