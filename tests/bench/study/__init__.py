"""The study behind the method: which negatives are worth their place in training, measured.

`make study PHOTOS=/path` builds data sets that differ only in their negatives, trains and measures
on each, and writes one table and one figure.
"""
