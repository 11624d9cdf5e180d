"""Which rows a run trains on, in which order, as which tensors."""
