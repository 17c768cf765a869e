"""A trained miniature of the whole chain: text encoder, Qwen3-VL, VAE, Z-Image DiT and a judge, on a procedural world.

Everything is of the classes and formats of the real models (see :mod:`models`), small enough to train on one GPU
within half an hour and to paint on a CPU in a second, so that methods can be measured instead of believed.

Run from the repository's root::

    python -m miniature STAGE --out FOLDER --seconds N [--resume] …

=============  =========  ====================================================================================
stage          seconds    what it does
=============  =========  ====================================================================================
text           150        a Qwen3 that reads and answers, with an attention sink (``text.py``, ``sink.py``)
vl             630        a vision tower for it, the language model frozen for most of the time (``vl.py``)
vae            210        an AutoencoderKL and the scale of its latents (``vae.py``)
judge          200        reads pictures; needs vae (``judge.py``)
dit            780        a Z-Image DiT; needs text and vae, and judge for its closing figures (``dit.py``)
assemble       –          folders for the stock classes, bf16 (``assemble.py``)
answers        90         the VL's last block once more, for its answers; needs the assembled VL (``answers.py``)
check          –          every goal, PASS or FAIL, and ``figures.json`` (``check.py``)
adapter        –          the picture adapter, fitted in closed form (``adapters.py``)
bench          –          methods × settings on conflicting pairs, ``frontier.json`` and its plot (``bench.py``)
takes          –          what each take brings, beside null controls, ``takes.json`` (``takes.py``)
curves         –          what decides the adapter's worth, ``adapter_curves.json`` (``curves.py``)
two-pictures   –          what the adapter shows of two pictures, ``two_pictures.json`` (``two_pictures.py``)
looks          –          what a learned look carries, beside nulls and words, ``looks.json`` (``looks.py``)
adapter-sheet  –          the adapter, words, null controls in pictures, ``adapter_sheet.png`` (``adapter_sheet.py``)
curves-plot    –          ``adapter_curves.json`` as a plot, ``adapter_curves.png`` (``curves_plot.py``)
tables         –          ``frontier.json`` and ``takes.json`` as tables in ``docs`` (``tables.py``)
scenes         –          pictures of the world as files, and prompts that disagree with them (``scenes.py``)
all                       text to check, with those seconds (``together.py``)
=============  =========  ====================================================================================

Seconds are training time on one H100-class GPU; preparing data comes on top (logged as ``data_s``). The learning
rate falls along a cosine over the clock, so a slower machine trains fewer steps of the same schedule. Models this small
leave most of a GPU idle, so ``all`` runs stages that do not need each other side by side on it::

    python -m miniature all --out build/miniature --models miniature/models
    python -m miniature adapter --out build/miniature --models miniature/models

A run that is killed, or ended by ``--stop-after``, loses at most what came after its last checkpoint (one a minute); go
on with ``--resume`` (``all`` leaves out what has ended). How the models in ``models/`` came about is in
docs/miniature.md. ``--toy`` runs everything on a CPU in minutes, with tiny models that learn nothing.
"""
