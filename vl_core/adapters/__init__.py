"""Closed-form maps: the picture adapter, the space adapter, and the ridge solve under both."""
