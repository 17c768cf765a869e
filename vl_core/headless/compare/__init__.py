"""`compare`: grids of settings painted, measured beside null controls, and shown on a page."""
