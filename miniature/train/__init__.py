"""Training the miniature: one stage a file."""
