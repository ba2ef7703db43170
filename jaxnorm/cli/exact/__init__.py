"""`exact`: how far the results of each library are from float64, and what they keep.

Speed is `bench`'s.
"""
