"""The commands of `python -m jaxnorm`, one or a few files for each."""
