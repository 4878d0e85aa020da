"""Lets DualEdit edit the ports of BLIP-2 and MiniGPT-4 that EasyEdit's master brings itself.

A port is called with a dictionary of texts and an image tensor, tokenises by itself, and shows its
language model embeddings alone. The classes here put token ids in front of it, with a placeholder
at every vision position, so that it reads as an image-text-to-text model of transformers does. The
embeddings are those that the port makes, so the answers are its own to the last bit.
"""
