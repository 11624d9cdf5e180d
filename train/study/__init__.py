"""The study behind the method: which negatives are worth their place in training, measured.

`python -m train.study PHOTOS --out DIR` builds data sets that differ in their negatives alone,
trains and measures on each, and writes one table and one figure.
"""
