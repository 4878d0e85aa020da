"""What is compared with what: the benchmark, layers, variants, many edits, rates of the gate.

Here belong experiments, and those rows of their tables that do not need EasyEdit. What they print
is in `report`.
"""
