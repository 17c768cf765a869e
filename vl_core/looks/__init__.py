"""A look learned from pictures: the file, putting it into a prompt, and learning it on any painter.

No image model lives here: what can be learned on is the protocol in ``painter.py``.
"""
