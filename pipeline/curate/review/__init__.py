"""A local page on which a person decides about suspected positives, by keyboard.

server -> pages -> desk -> suspects, nearest, saved
"""
