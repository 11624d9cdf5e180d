"""A local page on which a person decides about suspected positives, by keyboard.

server -> app -> session -> suspects, nearest, verdict_file
"""
