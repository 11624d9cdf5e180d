"""The data room: sources in, WebDataset shards with inclusion probabilities out."""
