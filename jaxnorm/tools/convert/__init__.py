"""Normalization layers of other libraries as modules of `jaxnorm.linen`.

No other library is imported: its layers are known by the names of their classes.
"""
