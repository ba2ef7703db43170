"""jaxnorm and the libraries that `bench` and `exact` run beside it, on the same arrays.

Here stands how each is called, and nothing of what is measured.
"""
