"""What a layer decides, whatever the framework: its options, which statistics normalize, its state.

State goes in and comes out as arrays; modules of Flax hold variables and call what is here.
"""
