"""A vision-language model as transformers gives it: layers, positions, inputs, hooks.

Here belongs what must be known of a model to change its forward: where its decoder layers are,
which positions are image tokens, where a prompt ends, how a hook is attached and taken off again.
Nothing here knows what an edit is.
"""
