"""What people read: tables, plots, the benchmark's page.

Here belongs how numbers are shown. Nothing here computes one from a model.
"""
