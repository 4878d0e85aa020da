"""The command line: one module a command, and the parser.

Here belongs what a command reads, prints and writes. What it computes is elsewhere. A command's
module is read for its help too, so it imports what is slow to import, torch above all, when it
runs.
"""
