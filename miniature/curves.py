"""Stage ``curves``: what decides the picture adapter's worth, a fit for each point, its pictures read by the judge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from vl_core.adapter import PictureAdapter, PictureFeatures

from . import adapters, assemble
from .adapters import Examples, fit, spec_of
from .bench import Painting, prepare, row_of
from .chain import Chain
from .methods import METHODS, Method
from .training import Options, begin, log, measured_with, write_json

FIT_SIZES = (50, 100, 200, 500, 1500)
STRENGTHS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
TARGET = 500  # pairs of the points that vary something else


def run(options: Options, switches) -> dict[str, Any]:
    """Measure on the bench's pairs and write ``adapter_curves.json`` beside the models."""
    device = begin(options)
    chain = Chain.load(assemble.models_folder(options), device)
    bench = prepare(chain, switches, options.seed)
    painting = Painting(bench, tuple(range(switches.seeds)), switches.steps, switches.guidance)
    floor, ceiling = painting.hits([case.states for case in bench.cases]), painting.measure(METHODS[0])
    rows = []
    for what, value, adapter, strength in points(chain, options):
        with_it = replace(bench, adapter=adapter)
        method = Method(what, "adapter", "adapter", None, {"strength": strength})
        found = row_of(method, replace(painting, bench=with_it).measure(method), floor, ceiling)
        row = {
            "what": what, "value": value, "pairs": adapter.report.pairs, "r2": adapter.report.r2,
            **{name: found[name] for name in ("transfer", "stderr", "transfer_by", "adherence", "leak")},
        }
        rows.append(row)
        shown = ("what", "value", "r2", "transfer", "stderr", "adherence")
        log(options, "curves", **{name: row[name] for name in shown})
    report = {"measured": measured_with("curves", device), "asked": switches.describe(), "rows": rows}
    write_json(options.report("adapter_curves.json"), report)
    return report


def points(chain: Chain, options: Options) -> Iterator[tuple[str, Any, PictureAdapter, float]]:
    """What is varied, its value, the adapter of that point and its strength."""
    seed, spec = adapters.SEED + options.seed, spec_of(chain)
    sizes = [options.size(size, 12) for size in FIT_SIZES]
    examples = Examples.draw(chain, max(sizes), seed)
    features, targets = examples.features(chain, spec.features), examples.targets(chain, spec)
    for size in sizes:
        yield "pairs", size, fit(spec, features[:size], targets[:size]), 1.0
    some = options.size(TARGET, 12)
    for rank in (4, 16, 64):
        yield "rank", rank, fit(spec, features[:some], targets[:some], rank=rank), 1.0
    adapter = fit(spec, features[:some], targets[:some])
    for strength in STRENGTHS:
        yield "strength", strength, adapter, strength
    few = Examples(examples.images[:some], examples.prompts[:some], examples.texts[:some])
    for pool in ("none", "mean", "grid4"):
        other = spec_of(chain, PictureFeatures(pool))
        yield "picture tokens", pool, fit(other, few.features(chain, other.features), targets[:some]), 1.0
    for layer in (-8, -4):
        other = spec_of(chain, PictureFeatures(layers=(layer,)))
        yield "layer", layer, fit(other, few.features(chain, other.features), targets[:some]), 1.0
    state = spec_of(chain, tail="state")
    yield "tail", "state", fit(state, features[:some], few.targets(chain, state)), 1.0
    told = Examples.draw(chain, some, seed, described=True)
    yield "words", "by the VL", fit(spec, told.features(chain, spec.features), told.targets(chain, spec)), 1.0
