"""What travels: states, their layout, statistics and files. Imports nothing else of the pack.

No stage and no model lives here.
"""
