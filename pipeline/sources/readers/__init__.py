"""What sources read with: tars, tables of labels, and how a list is cut into partitions.

A source is one file above this floor; what two of them need, or what would bury one, is here.
"""
