"""The frontier as SVG, in the colours of the page it stands on."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .evidence import Figures

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 420, 64, 24, 52
KEY = 300  # pixels for the names
NEAR = 10  # pixels within which two marks are one
# Told apart by the colour-blind (Okabe and Ito), and by their numbers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")


def frontier(points: Sequence[tuple[str, Figures]]) -> str:
    """Transfer over adherence: a mark a way with its errors, its nulls hollow."""
    known = [
        (name, one, one.adherence, one.transfer) for name, one in points
        if one.transfer is not None and one.adherence is not None
    ]
    if not known:
        return "<p>Nothing to plot.</p>"
    values = [value for _, one, _, transfer in known for value in (transfer, *(null[0] for null in one.nulls.values()))]
    top = max(1.1, max(value for value in values if value is not None) + 0.1)
    low = min(-0.15, min(value for value in values if value is not None) - 0.05)
    parts = [f'<svg viewBox="0 0 {WIDTH + KEY} {HEIGHT}" width="{WIDTH + KEY}" role="img" aria-label="frontier">']

    def at(adherence: float, transfer: float) -> tuple[float, float]:
        return (
            LEFT + adherence * (WIDTH - LEFT - 16), TOP + (top - transfer) / (top - low) * (HEIGHT - TOP - BOTTOM)
        )

    for share in (0, 0.25, 0.5, 0.75, 1):
        (x, y), (_, above) = at(share, low), at(share, top)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{y:.1f}" x2="{x:.1f}" y2="{above:.1f}"/>')
        parts.append(f'<text class="dimtext" x="{x:.1f}" y="{y + 17:.1f}" text-anchor="middle">{share:g}</text>')
    for level, name in ((0, "0 words alone"), (0.5, "0.5"), (1, "1 caption")):
        (x, y), (end, _) = at(0, level), at(1, level)
        parts.append(f'<line class="axis" x1="{x:.1f}" y1="{y:.1f}" x2="{end:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="dimtext" x="{x + 4:.1f}" y="{y - 4:.1f}">{name}</text>')
    middle = at(0.5, low)
    parts.append(f'<text x="{middle[0]:.1f}" y="{HEIGHT - 12}" text-anchor="middle">the prompt is there</text>')
    parts.append(
        f'<text transform="translate(18 {(HEIGHT - BOTTOM + TOP) / 2:.0f}) rotate(-90)" text-anchor="middle">'
        "how much of the picture\'s look arrives</text>"
    )
    places: dict[int, tuple[float, float]] = {}
    told: dict[tuple[int, int], list[int]] = {}  # numbers by place, so that those of one place stand side by side
    for number, (name, one, adherence, transfer) in enumerate(known):
        colour = COLOURS[number % len(COLOURS)]
        x, y = at(adherence, transfer)
        for null, _ in one.nulls.values():
            if null is not None:
                hollow = at(adherence, null)
                parts.append(
                    f'<circle cx="{hollow[0]:.1f}" cy="{hollow[1]:.1f}" r="4" fill="none" stroke="{colour}"/>'
                )
        error, across = one.transfer_error or 0.0, one.adherence_error or 0.0
        upright = at(adherence, transfer - error), at(adherence, transfer + error)
        level = at(max(0, adherence - across), transfer), at(min(1, adherence + across), transfer)
        for (x1, y1), (x2, y2) in (upright, level):
            parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"/>')
        line = TOP + 12 + 24 * number
        parts.append(f'<circle cx="{WIDTH + 12}" cy="{line - 4}" r="6" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH + 26}" y="{line}">{number + 1}. {escape(name)}: {one.transfer:.2f}</text>')
        told.setdefault((round(x / NEAR), round(y / NEAR)), []).append(number + 1)
        places.setdefault(number + 1, (x, y))
    for numbers in told.values():
        x, y = places[numbers[0]]
        listed = ", ".join(map(str, numbers))
        parts.append(f'<text class="dimtext" x="{x + 8:.1f}" y="{y - 7:.1f}">{listed}</text>')
    return "".join(parts) + "</svg>"
