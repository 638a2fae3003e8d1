"""How money comes in: packages, checkouts, signed webhooks, claims."""
