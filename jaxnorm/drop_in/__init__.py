"""Flax's own norms with jaxnorm behind them."""
