"""The page on which people edit a model, ask it, and see why it answers so.

What the page does is plain Python (`Session`); Gradio, an extra, shows it and is imported only
where it is used.
"""
