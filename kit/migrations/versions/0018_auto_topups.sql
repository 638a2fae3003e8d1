-- Automatic top-ups: one wish an account, and each charge written down before the provider hears of it.

CREATE TABLE auto_topups (
    account_id BIGINT NOT NULL,
    provider TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    threshold BIGINT NOT NULL,
    package_code TEXT NOT NULL,
    package_name TEXT NOT NULL,
    price_version INTEGER,
    credits_tokens BIGINT NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    month_most_minor BIGINT NOT NULL,
    state TEXT DEFAULT 'on' NOT NULL,
    reason TEXT,
    declines INTEGER DEFAULT 0 NOT NULL,
    rest_until TIMESTAMP WITH TIME ZONE,
    set_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT auto_topups_pkey PRIMARY KEY (account_id),
    CONSTRAINT auto_topups_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT auto_topups_threshold_check CHECK (threshold > 0 AND threshold <= credits_tokens),
    CONSTRAINT auto_topups_amounts_check CHECK (amount_minor > 0 AND month_most_minor >= amount_minor),
    CONSTRAINT auto_topups_state_check CHECK (state IN ('on', 'paused', 'off') AND (state = 'on') = (reason IS NULL)
        AND reason IN ('authentication_required', 'card_declined', 'no_card', 'package_changed')),
    CONSTRAINT auto_topups_declines_check CHECK (declines >= 0)
);

CREATE TABLE auto_topup_charges (
    id TEXT NOT NULL,
    account_id BIGINT NOT NULL,
    customer_id TEXT NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    month DATE NOT NULL,
    state TEXT DEFAULT 'charging' NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    due_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    problem TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT auto_topup_charges_pkey PRIMARY KEY (id),
    CONSTRAINT auto_topup_charges_id_fkey FOREIGN KEY(id) REFERENCES purchases (id),
    CONSTRAINT auto_topup_charges_account_id_fkey FOREIGN KEY(account_id) REFERENCES accounts (id),
    CONSTRAINT auto_topup_charges_amount_check CHECK (amount_minor > 0 AND attempts >= 0),
    CONSTRAINT auto_topup_charges_month_check CHECK (extract(day FROM month) = 1),
    CONSTRAINT auto_topup_charges_state_check CHECK (state IN ('charging', 'paid', 'refused')),
    CONSTRAINT auto_topup_charges_ended_check CHECK ((state = 'charging') = (ended_at IS NULL))
);
-- Whoever writes a second one finds the first.
CREATE UNIQUE INDEX auto_topup_charges_one_at_a_time_idx ON auto_topup_charges (account_id) WHERE state = 'charging';
CREATE INDEX auto_topup_charges_account_id_month_idx ON auto_topup_charges (account_id, month);
CREATE INDEX auto_topup_charges_due_at_idx ON auto_topup_charges (due_at) WHERE state = 'charging';

CREATE TRIGGER never_deleted BEFORE DELETE OR TRUNCATE ON auto_topup_charges
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER terms_are_fixed BEFORE UPDATE OF id, account_id, customer_id, amount_minor, currency, month, created_at
    ON auto_topup_charges
    FOR EACH ROW EXECUTE FUNCTION refuse_new_terms();
-- Money that came stays counted; a refused charge that was paid after all is paid.
CREATE TRIGGER paid_for_good BEFORE UPDATE ON auto_topup_charges
    FOR EACH ROW WHEN (OLD.state = 'paid') EXECUTE FUNCTION refuse_second_outcome();

-- Only real credits are bought without anyone looking on.
CREATE FUNCTION refuse_test_topup() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM accounts WHERE id = NEW.account_id AND world = 'live' AND user_id IS NOT NULL) THEN
        RAISE EXCEPTION 'account % is not topped up by itself', NEW.account_id USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER live_alone BEFORE INSERT OR UPDATE OF account_id ON auto_topups
    FOR EACH ROW EXECUTE FUNCTION refuse_test_topup();

-- The ceiling of a month holds under the wish's lock, so that of two writers the second sees what the first wrote.
CREATE FUNCTION keep_month_ceiling() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    most BIGINT;
    spent BIGINT;
BEGIN
    SELECT month_most_minor INTO most FROM auto_topups
    WHERE account_id = NEW.account_id AND state = 'on' AND currency = NEW.currency
    FOR NO KEY UPDATE;
    SELECT coalesce(sum(amount_minor), 0) INTO spent FROM auto_topup_charges
    WHERE account_id = NEW.account_id AND month = NEW.month AND currency = NEW.currency AND state <> 'refused';
    IF most IS NULL OR spent + NEW.amount_minor > most THEN
        RAISE EXCEPTION 'account % may not be charged % more in %', NEW.account_id, NEW.amount_minor, NEW.month
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER within_the_month BEFORE INSERT ON auto_topup_charges
    FOR EACH ROW EXECUTE FUNCTION keep_month_ceiling();
