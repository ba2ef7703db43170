"""`bench`: what normalizations cost in time and memory, beside other libraries and a copy.

Alone (`norms`), as inputs grow (`growth`), in models (`models`), and as the compiler of a chip that
need not be there sees them (`compiled`).
"""
