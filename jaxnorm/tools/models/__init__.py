"""Models of linen and NNX run as pure functions, with a look at each call of a module."""
