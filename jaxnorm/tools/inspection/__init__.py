"""What is wrong with the statistics of a model.

`survey` measures, `findings` says it in sentences.
"""
