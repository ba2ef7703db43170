"""Models in plain flax, as users write them; each is to be small, whatever its sizes elsewhere."""
