"""What every normalization is made of: axes, pools, statistics, the formula and its derivatives.

Nothing here knows a technique; those are in `jaxnorm.functional`.
"""
