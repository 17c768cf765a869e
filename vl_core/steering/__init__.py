"""The engine: ways a picture can act, what can be taken from it, settings, recipes and sweeps.

Nothing here knows where it runs.
"""
