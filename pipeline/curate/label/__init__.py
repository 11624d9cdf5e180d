"""A local page on which a person teaches: rounds of pictures that the head of the moment chooses.

server -> app -> session -> apply, choosing, estimates, log, pictures -> candidates
"""
