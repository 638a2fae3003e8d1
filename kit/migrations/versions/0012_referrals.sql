-- Who brought whom, and what that earns: one code for each account, one referral for each account that applied one.

-- The provider's name for the card that paid: the same card has the same one, whoever uses it.
ALTER TABLE purchases ADD COLUMN card_fingerprint text;
CREATE INDEX purchases_card_fingerprint_idx ON purchases (card_fingerprint) WHERE card_fingerprint IS NOT NULL;

CREATE TABLE referral_codes (
    account_id bigint NOT NULL,
    code text NOT NULL,
    created_at timestamptz DEFAULT now() NOT NULL,
    CONSTRAINT referral_codes_pkey PRIMARY KEY (account_id),
    CONSTRAINT referral_codes_code_key UNIQUE (code),
    CONSTRAINT referral_codes_account_id_fkey FOREIGN KEY (account_id) REFERENCES accounts (id),
    CONSTRAINT referral_codes_code_check CHECK (code ~ '^[0-9A-HJKMNP-TV-Z]{8}$')
);

CREATE TABLE referrals (
    id text NOT NULL,
    referee_id bigint NOT NULL,
    referrer_id bigint NOT NULL,
    reward bigint NOT NULL,
    state text DEFAULT 'applied' NOT NULL,
    applied_at timestamptz DEFAULT clock_timestamp() NOT NULL,
    purchase_id text,
    ordered_at timestamptz,
    taken_back_at timestamptz,
    refusal text,
    transfer_id bigint,
    rewarded_at timestamptz,
    CONSTRAINT referrals_pkey PRIMARY KEY (id),
    CONSTRAINT referrals_referee_id_key UNIQUE (referee_id),
    CONSTRAINT referrals_purchase_id_key UNIQUE (purchase_id),
    CONSTRAINT referrals_transfer_id_key UNIQUE (transfer_id),
    CONSTRAINT referrals_referee_id_fkey FOREIGN KEY (referee_id) REFERENCES accounts (id),
    CONSTRAINT referrals_referrer_id_fkey FOREIGN KEY (referrer_id) REFERENCES accounts (id),
    CONSTRAINT referrals_purchase_id_fkey FOREIGN KEY (purchase_id) REFERENCES purchases (id),
    CONSTRAINT referrals_transfer_id_fkey FOREIGN KEY (transfer_id) REFERENCES transfers (id),
    CONSTRAINT referrals_self_check CHECK (referee_id <> referrer_id),
    CONSTRAINT referrals_reward_check CHECK (reward > 0),
    CONSTRAINT referrals_state_check CHECK (state IN ('applied', 'ordered', 'rewarded', 'refused', 'reversed')),
    CONSTRAINT referrals_ordered_check CHECK ((state = 'applied') = (purchase_id IS NULL) AND (purchase_id IS NULL) = (ordered_at IS NULL)),
    CONSTRAINT referrals_rewarded_check CHECK ((state IN ('rewarded', 'reversed')) = (transfer_id IS NOT NULL) AND (transfer_id IS NULL) = (rewarded_at IS NULL)),
    CONSTRAINT referrals_refused_check CHECK ((state = 'refused') = (refusal IS NOT NULL) AND refusal IN ('taken_back', 'same_person', 'suspended', 'month_cap', 'total_cap')),
    CONSTRAINT referrals_taken_back_check CHECK (CASE state WHEN 'reversed' THEN taken_back_at IS NOT NULL WHEN 'rewarded' THEN true WHEN 'refused' THEN (taken_back_at IS NOT NULL) = (refusal = 'taken_back') ELSE taken_back_at IS NULL END)
);
CREATE INDEX referrals_referrer_idx ON referrals (referrer_id, rewarded_at);
CREATE INDEX referrals_ordered_idx ON referrals (ordered_at) WHERE state = 'ordered';
CREATE INDEX referrals_taken_back_idx ON referrals (taken_back_at) WHERE state = 'rewarded' AND taken_back_at IS NOT NULL;

-- Who applied whose code stays; a reward is given once, and a referral ends once.
CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON referrals
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER facts_are_fixed BEFORE UPDATE OF id, referee_id, referrer_id, reward, applied_at ON referrals
    FOR EACH ROW EXECUTE FUNCTION refuse_second_outcome();
CREATE TRIGGER ordered_once BEFORE UPDATE OF purchase_id, ordered_at ON referrals
    FOR EACH ROW WHEN (OLD.state <> 'applied') EXECUTE FUNCTION refuse_second_outcome();
CREATE TRIGGER rewarded_once BEFORE UPDATE OF transfer_id, rewarded_at ON referrals
    FOR EACH ROW WHEN (OLD.state <> 'ordered') EXECUTE FUNCTION refuse_second_outcome();
CREATE TRIGGER ends_once BEFORE UPDATE ON referrals
    FOR EACH ROW WHEN (OLD.state IN ('refused', 'reversed')) EXECUTE FUNCTION refuse_second_outcome();

-- Nobody was brought by somebody whom they brought, over however many steps. One at a time: two new referrals may close
-- a ring that neither closes alone.
CREATE FUNCTION refuse_referral_ring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('payments.referrals', 0));
    IF referred_by(NEW.referrer_id, NEW.referee_id) THEN
        RAISE EXCEPTION 'referral % closes a ring', NEW.id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;

-- Whether `ancestor` brought the account, or brought one who did.
CREATE FUNCTION referred_by(account bigint, ancestor bigint) RETURNS boolean LANGUAGE sql STABLE AS $$
    WITH RECURSIVE line AS (
        SELECT r.referrer_id FROM referrals r WHERE r.referee_id = account
        UNION
        SELECT r.referrer_id FROM line JOIN referrals r ON r.referee_id = line.referrer_id
    )
    SELECT EXISTS (SELECT FROM line WHERE referrer_id = ancestor)
$$;
CREATE TRIGGER no_ring BEFORE INSERT ON referrals FOR EACH ROW EXECUTE FUNCTION refuse_referral_ring();

-- Whatever takes credits of an order back, its referral hears of it in the same transaction: what was pending is refused
-- at once, what was granted is left to the sweep, which needs the other account's lock.
CREATE FUNCTION referral_taken_back() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE referrals
    SET taken_back_at = clock_timestamp(),
        state = CASE state WHEN 'ordered' THEN 'refused' ELSE state END,
        refusal = CASE state WHEN 'ordered' THEN 'taken_back' END
    WHERE purchase_id = NEW.purchase_id AND state IN ('ordered', 'rewarded') AND taken_back_at IS NULL;
    RETURN NULL;
END
$$;
CREATE TRIGGER referral_taken_back AFTER UPDATE OF clawed ON grants
    FOR EACH ROW WHEN (NEW.source = 'purchase' AND NEW.clawed > OLD.clawed) EXECUTE FUNCTION referral_taken_back();
