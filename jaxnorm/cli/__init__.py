"""The commands of `python -m jaxnorm`: a folder or a file for each, and what they share.

They stand on top of everything else, and nothing imports them.
"""
