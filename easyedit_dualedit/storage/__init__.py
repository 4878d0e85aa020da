"""What lies on disk: locks, files that change as one, what parsers raise, what numbers may be."""
