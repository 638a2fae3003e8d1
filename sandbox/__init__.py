"""Twins of the outside world: small servers that speak the real protocols, with no real money behind them.

Nothing here imports product code, and product code meets a twin over HTTP only. `python -m sandbox`
starts the Stripe twin; tests build one in process with `sandbox.stripe_twin.create_twin`.
"""
