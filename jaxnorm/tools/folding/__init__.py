"""Batch norms in evaluation folded into the layers before them.

`pairs` says which, `search` finds them in a program, `kernel` has the arithmetic.
"""
