"""Embedded Postgres: `EmbeddedPostgres` starts, finds again and stops one server for one data directory.

users      who runs the server, and what that user can reach
programs   the wheel's binaries
cluster    where the data live, and how they are first made
config     settings with their reasons, and who may log in
processes  the server's processes, found and ended
server     the launcher over all of them
"""

from kit.postgres.server import EmbeddedPostgres
from kit.postgres.users import PostgresStartError

__all__ = ["EmbeddedPostgres", "PostgresStartError"]
