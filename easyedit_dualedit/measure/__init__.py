"""How an edited model is asked and its answers are scored: protocols, metrics, a run on disk.

Here belongs what turns a model and a record into numbers. Which models and records are compared
is a matter of `experiments`.
"""
