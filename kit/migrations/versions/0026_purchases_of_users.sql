-- A customer's own purchases, and what they began: found without reading everybody's.
CREATE INDEX purchases_user_id_idx ON purchases (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX purchases_topup_user_id_idx ON purchases (topup_user_id) WHERE topup_user_id IS NOT NULL;
