"""The models: a registry of them, one file a family, and the server that runs one in a replica.

Importing this package, `registry`, `contract`, `weights` or `server` loads no tensor library: only a family's
`load`, `generate` and `build_tiny` do.
"""
