"""The books: who owns what, every movement with its two sides, what is held, and who may move it."""
