"""What every normalization is made of: axes, pools, statistics, the formula and its derivatives.

Nothing here knows a technique; those are in `jaxnorm.functional`. `pool` says which elements share
their statistics, `statistics` finds these in one of three ways, `formula` applies them,
`derivatives` holds the tangent and the cotangents, `normalize` makes JAX primitives of these with
`primitive`, and `plan` is the table of what differs between backends.
"""
