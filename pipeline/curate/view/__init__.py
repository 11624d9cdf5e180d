"""A data set to look at: `infineg view` writes one page and a data card in Croissant.

page -> gather, card
"""
