"""How adapters and gate are trained: steps, losses, what of the frozen model is shared or kept.

Here belongs what runs before the first edit. Nothing here measures how well an edit does.
"""
