"""Stage ``two-pictures``: what the shipped picture adapter shows of two pictures at once, and what limits it.

``parts_of_both`` is the share of paintings in which something of one look is there that the other has not, and the
other way round. A caption of both looks in true words is its bound, two other pictures are its null control.
"""

from __future__ import annotations

from typing import Any

from ..train.training import Options, log, write_json
from . import adapters
from .bench import Painting, Switches, begun, draw_pairs, looks_in_words, row_of, share, workers
from .chain import Chain, as_image
from .methods import Bench
from .rows import CAPTION, METHODS, TEXT_ONLY, Method

APART = 7  # pairs between the two pictures and the null control's
REPORT = "two_pictures.json"


def methods() -> tuple[Method, ...]:
    """The rows beside words alone and a caption of the first picture."""
    return (
        Method("words of both", "caption", "words of both"),
        *(
            Method(name, "adapter", "two adapted", None, setting)
            for name, setting in {
                "parts": {"combining": "parts"}, "average": {"combining": "average"},
                "parts of two other pictures": {"combining": "parts", "shift": APART},
            }.items()
        ),
        Method("parts, their tails averaged", "adapter", "average tail"),
        Method("append", "adapter", "two adapted", None, {"combining": "append"}),
    )


def run(options: Options, switches: Switches) -> dict[str, Any]:
    """Measure on the bench's pairs and write ``two_pictures.json`` beside the models; measured rows are kept."""
    chain, ledger, asked = begun(options, switches, "two-pictures")
    pool = workers()
    bench = look_at(chain, switches, options.seed)
    painting = Painting(bench, tuple(range(switches.seeds)), switches.steps, switches.guidance, pool)
    if switches.shard:
        for method in share(methods(), switches.shard):
            ledger.measured(method.name, lambda method=method: painting.measure(method))
            log(options, "two_pictures", measured=method.name)
        return {}
    floor = ledger.measured(TEXT_ONLY, lambda: painting.hits([case.states for case in bench.cases]))
    ceiling = ledger.measured(CAPTION, lambda: painting.measure(METHODS[0]))
    rows = []
    for method in (Method(TEXT_ONLY, "none", "words"), METHODS[0], *methods()):
        found = ledger.measured(method.name, lambda method=method: painting.measure(method))
        rows.append(_row(method, found, floor, ceiling))
        log(options, "two_pictures", **rows[-1])
    if pool is not None:
        pool.shutdown()
    report = {"measured": ledger.mostly_with(), "asked": asked, "rows": rows}
    write_json(options.report(REPORT), report)
    return report


def look_at(chain: Chain, switches: Switches, seed: int) -> Bench:
    """The bench's pairs without what other methods need: the VL's own words take most of its time."""
    pairs, pictures = draw_pairs(chain, switches, seed)
    bench = Bench(chain, None, pairs, as_image(pictures), adapter=adapters.load(chain.folder))
    looks = looks_in_words(pairs)
    return bench.with_cases(looks, looks)


def _row(method: Method, found, floor, ceiling) -> dict[str, Any]:
    row, both = row_of(method, found, floor, ceiling), found["parts_of_both"]
    kept = ("name", "transfer", "stderr", "transfer_next", "adherence", "adherence_stderr", "adherence_shape", "leak")
    error = float(both.std() / len(both) ** 0.5) if len(both) > 1 else None
    return {**{name: row[name] for name in kept}, "parts_of_both": float(both.mean()), "parts_of_both_stderr": error}
