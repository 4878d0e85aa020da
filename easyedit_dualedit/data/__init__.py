"""Edit records: reading and checking them, what each query of theirs is for, what leaks.

Here belongs what can be said of the data without a model.
"""
