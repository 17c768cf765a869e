"""The layer report of an evaluation: every hidden state of Qwen3-VL beside Z-Image's own text encoder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ...reports.layer_report import layer_report, mean_report
from ...states.layout import TokenLayout
from ...zimage.progress import progress
from .kept import write_whole

if TYPE_CHECKING:
    from .runner import Evaluation

FILE, TABLE = "layers.txt", "layers.csv"
PAIRS = 4  # readings of all layers, of so many tokens a picture at most
TOKENS = 256


def layers_of(evaluation: Evaluation) -> str:
    """The summary in words, measured once and kept beside its table."""
    path = evaluation.folder / FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    (reference,), _ = evaluation.kept.statistics()
    seen, found = [], []
    pairs = list(dict.fromkeys((trial.picture, trial.prompt) for trial in evaluation.trials))[:PAIRS]
    with evaluation.turns("vision") as encoder, progress("Reading all layers", len(pairs)) as move:
        for picture, prompt in pairs:
            text = evaluation.sheet.prompts[prompt].text
            read = encoder.encode(
                [evaluation.pictures[picture]], text, tuple(range(encoder.num_layers + 1)), budget=TOKENS
            )
            seen.append((text, replace(read, states=read.states.cpu())))
            move()
    for text, read in seen:
        (own,) = evaluation.kept.words(text)
        assert isinstance(own.layout, TokenLayout)
        found.append(layer_report(read, reference, own.states, own.layout))
    report = mean_report(found)
    write_whole(evaluation.folder / TABLE, report.csv())
    write_whole(path, report.summary() + "\n")
    return report.summary() + "\n"
