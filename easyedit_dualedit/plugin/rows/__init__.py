"""EasyEdit's own methods as rows of the benchmark.

Here belongs how each method of EasyEdit is trained, run and undone on any model that DualEdit runs
on, and what had to be worked around for it.
"""
