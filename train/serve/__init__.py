"""`infineg serve`: a page and an HTTP API that say whether a picture shows a target.

The page and the API use the same `POST /predict`. One process: an event loop reads requests, and a
thread predicts for them in batches.
"""
