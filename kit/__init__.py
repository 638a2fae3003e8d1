"""The floor of the house: settings, database, errors, ids, telemetry, storage. It knows no word of the domain."""
