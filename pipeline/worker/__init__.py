"""The work of one process on one span: read, decode, embed, score, select, write."""
