"""`compare`: the same small classifier trained with each normalization.

Here stand its data, model and training, and the table and picture of what came of it.
"""
