"""Everything in the pipeline that knows Ray: workers, actors, and where they are placed."""
