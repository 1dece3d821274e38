"""Writing training records: sources, recipes, shards, engines."""
