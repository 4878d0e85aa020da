"""A vision-language model of real parts, and MMEdit records about what it knows.

SmolLM2-135M-Instruct reads pictures of a thousand nameable things, in the drawings of two vendors.
"""
