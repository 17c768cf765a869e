"""A trained miniature of the whole chain: text encoder, Qwen3-VL, VAE, Z-Image DiT and a judge, on a procedural world.

Everything is of the classes and formats of the real models (see :mod:`~.models`), small enough to train on two GPUs
in 22 minutes and to paint on a CPU in a second, so that methods can be measured instead of believed.

Run from the repository's root::

    python -m miniature STAGE --out FOLDER --seconds N [--resume] …

=============  =========  =============================================================================
Seconds are training time on one H100-class GPU; preparing data comes on top (logged as ``data_s``). The learning
rate falls along a cosine over the clock, so a slower machine trains fewer steps of the same schedule. Models this small
leave most of a GPU idle, so what does not need each other can share one::

    (python -m miniature text --out build/miniature && python -m miniature vl --out build/miniature) &
    (python -m miniature vae --out build/miniature && python -m miniature judge --out build/miniature); wait
    python -m miniature dit --out build/miniature
    python -m miniature assemble --out build/miniature --models miniature/models
    python -m miniature check --out build/miniature --models miniature/models
    python -m miniature adapter --out build/miniature --models miniature/models

A run that is killed, or ended by ``--stop-after``, loses at most what came after its last checkpoint (one a minute); go
on with ``--resume``. How the models in ``models/`` came about is in docs/miniature.md.
``--toy`` runs everything on a CPU in minutes, with tiny models that learn nothing.
"""
