"""The ways a picture can act: a file each, which names them in ``WAYS``. A new file here is a new way everywhere.

No way reads, writes or measures anything: it says what it needs, and acts on it.
"""
