"""A finished run in a form for others, compared with the run before it is given away."""
