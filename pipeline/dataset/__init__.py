"""The data set on disk: schema, records, manifest, shards, commit, lease and duplicates."""
