"""Which layers let one example reach another.

`follow` carries labels of examples through a program, by the `rules` of its operations.
"""
