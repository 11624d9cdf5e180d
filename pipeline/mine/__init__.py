"""A trained model chooses more negatives: score, choose, fetch, pack."""
