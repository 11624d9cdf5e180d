"""The processes of a run: world, rendezvous, sharding, agreement, signals."""
