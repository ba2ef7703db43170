"""`python -m jaxnorm bench --norms all`: every normalizing function, in natural shapes."""
