"""A trained miniature of the whole chain: text encoder, Qwen3-VL, VAE, Z-Image DiT and a judge, on a procedural world.

Everything is of the classes and formats of the real models (see :mod:`~.models`), small enough to train on one GPU in
half an hour and to paint on a CPU in a second, so that methods can be measured instead of believed.

Run from the repository's root::

    python -m miniature STAGE --out FOLDER --seconds N [--resume] …

==========  =========  ====================================================================================
stage       seconds    what it does
==========  =========  ====================================================================================
text        150        a Qwen3 that reads and answers, with an attention sink (``text.py``, ``sink.py``)
vl          330        a vision tower for it, the language model frozen for most of the time (``vl.py``)
vae         210        an AutoencoderKL and the scale of its latents (``vae.py``)
judge       110        reads pictures; needs vae (``judge.py``)
dit         860        a Z-Image DiT; needs text and vae, and judge for its closing figures (``dit.py``)
assemble    –          folders for the stock classes, bf16 (``assemble.py``)
check       –          every goal, PASS or FAIL, and ``figures.json`` (``check.py``)
bench       –          methods × settings on conflicting pairs, ``frontier.json`` and its plot (``bench.py``)
all                    text to check in turn, with those seconds
==========  =========  ====================================================================================

Seconds are training time on one H100-class GPU; preparing data comes on top (logged as ``data_s``). The learning
rate falls along a cosine over the clock, so a slower machine trains fewer steps of the same schedule. One session of
30 minutes is three commands of at most ten, one after the other on the same machine (the folder of the run must
outlive each of them)::

    (python -m miniature text --out build/miniature --seconds 150 &&
     python -m miniature vl --out build/miniature --seconds 330) &
    (python -m miniature vae --out build/miniature --seconds 210 &&
     python -m miniature judge --out build/miniature --seconds 110); wait          # 1: about 540 s
    python -m miniature dit --out build/miniature --seconds 860 --stop-after 570 --resume   # 2: 570 s
    python -m miniature dit --out build/miniature --seconds 860 --stop-after 400 --resume &&
    python -m miniature assemble --out build/miniature --models miniature/models &&
    python -m miniature check --out build/miniature --models miniature/models            # 3: about 440 s

Text and vl run beside vae and judge because models this small leave most of a GPU idle. The DiT has it alone. A run
that is killed loses at most what came after its last checkpoint (one a minute); start it again with ``--resume``.
``--toy`` runs everything on a CPU in minutes, with tiny models that learn nothing.
"""
