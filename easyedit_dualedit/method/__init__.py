"""DualEdit itself: adapters, the gate, an edit in force, an edit at rest, a memory of edits.

Here belongs what the paper describes and what an edited model needs to answer. How adapters and
gate are trained is in `train`, how well an edit does in `measure`.
"""
