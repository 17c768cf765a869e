"""``evaluate``: how much of a picture arrives with the weights at hand, by which way, layer and strength.

What is painted stands in ``arms`` and ``plan``, how in ``turns``, ``kept`` and ``runner``, what comes of it in
``figures``, ``page`` and ``evidence``.
"""
