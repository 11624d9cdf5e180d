"""Everything that knows Ray: workers, actors, and where they are placed."""
