-- `not_offered`: switched on before this server began to work out the tax of each payment at its checkout, or refused by
-- the provider for another reason than the card.
ALTER TABLE auto_topups
    DROP CONSTRAINT auto_topups_state_check,
    ADD CONSTRAINT auto_topups_state_check CHECK (
        state IN ('on', 'paused', 'off') AND (state = 'on') = (reason IS NULL)
        AND reason IN ('authentication_required', 'card_declined', 'no_card', 'not_offered', 'package_changed')
    );
