"""The command line: one module a command, and the parser.

Here belongs what a command reads, prints and writes. What it computes is elsewhere.
"""
