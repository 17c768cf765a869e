"""Stage ``mixes``: words mixed, the picture's tokens added, and both; what training-free ways bring together.

Each row stands beside the same on another picture, its null control. The rest of the bench's rows are older
(:mod:`~.bench`); these need none of the VL's words, so a CPU measures them in minutes.
"""

from __future__ import annotations

from typing import Any

from . import assemble
from .bench import Ledger, Painting, Switches, row_of, share, workers
from .chain import Chain
from .methods import METHODS, TEXT_ONLY, Method
from .training import Options, begin, log, measured_with, write_json
from .two_pictures import APART, look_at

REPORT = "mixes.json"
ANOTHER = "another picture"


def methods() -> tuple[Method, ...]:
    """Each part alone, then both."""
    before_tail = {"alpha": 1.0, "method": "append", "tokens": "image_no_markers", "append_downsample": 1,
                   "append_position": "before_tail"}
    return (
        Method("blend aligned", "training_free", "recipe", -6, {"mode": "blend aligned", "strength": 0.5}),
        Method("append before the tail", "training_free", "blend", -2, before_tail),
        *(
            Method("blend and append", "training_free", "recipe", -6, {"mode": "blend and append", "strength": s})
            for s in (0.5, 1.0)
        ),
        *(
            Method("object kept, and appended", "training_free", "kept and appended", -4, {"alpha": alpha})
            for alpha in (0.7, 1.0)
        ),
    )


def run(options: Options, switches: Switches) -> dict[str, Any]:
    """Measure on the bench's pairs and write ``mixes.json`` beside the models; measured rows are kept."""
    device = begin(options)
    chain = Chain.load(assemble.models_folder(options), device)
    asked = {**switches.describe(), "seed": options.seed, "weights": assemble.weight_bytes(chain.folder)}
    ledger = Ledger(options.out / "mixes_rows.jsonl", asked, options.resume)
    pool = workers()
    bench = look_at(chain, switches, options.seed, wrong=APART)
    painting = Painting(bench, tuple(range(switches.seeds)), switches.steps, switches.guidance, pool)
    floor = ledger.measured(TEXT_ONLY, lambda: painting.hits([case.states for case in bench.cases]))
    ceiling = ledger.measured(METHODS[0].name, lambda: painting.measure(METHODS[0]))
    rows = []
    for method in share(methods(), switches.shard):
        for control in ("", ANOTHER):
            key = f"{control}: {method.key}"
            found = ledger.measured(key, lambda m=method, c=control: painting.measure(m, c))
            rows.append({"control": control, **row_of(method, found, floor, ceiling)})
            log(options, "mixes", **{name: rows[-1][name] for name in ("control", "name", "setting", "transfer")})
    if pool is not None:
        pool.shutdown()
    if switches.shard:
        return {}
    bounds = ((Method(TEXT_ONLY, "none", "words"), floor), (METHODS[0], ceiling))
    report = {
        "measured": measured_with("mixes", device), "asked": asked, "rows": rows,
        "baselines": [row_of(method, found, floor, ceiling) for method, found in bounds],
    }
    write_json(options.report(REPORT), report)
    return report
