"""The driver of a build: what is left to do, pilot and plans, rounds, packing, watching."""
