"""Figures in the prose of docs/*.md are those of the committed files: sentences with places that the files fill."""
# ruff: noqa: E501 — sentences as they stand on the pages

from __future__ import annotations

import csv
import json
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@cache
def table(name: str) -> dict[tuple[str, str], dict[str, str]]:
    """A file of docs/findings by (setting, figure); of several nulls the first is "another"."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    lines = (ROOT / "docs" / "findings" / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(lines):
        found.setdefault((row["setting"], row["figure"]), {})[row["null"]] = row
    return found


@cache
def layers(name: str) -> dict[str, dict[str, str]]:
    lines = (ROOT / "docs" / "findings" / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    return {" ".join((row["group"], row["space"], row["sinks"], row["layer"])): row for row in csv.DictReader(lines)}


@cache
def report(name: str) -> dict:
    return json.loads((ROOT / "miniature" / f"{name}.json").read_text(encoding="utf-8"))


def two(value: float) -> str:
    """Two digits as prose has them: .33, 1.00, -.12."""
    return re.sub(r"^(-?)0\.", r"\1.", f"{float(value):.2f}")


def of(name: str, setting: str, figure: str, what: str = "mean") -> str:
    """``mean``, ``error``, or ``null_mean`` with another picture."""
    rows = table(name)[setting, figure]
    row = rows.get("another", next(iter(rows.values())))
    return two(row[what])


def layer(row: str, metric: str, file: str = "layers") -> str:
    return two(layers(file)[row][metric])


def bench(name: str, at: int | None, key: str = "transfer", **setting: object) -> str:
    """Of the one row of the bench that has this name, layer and setting."""
    (row,) = [
        row for row in report("frontier")["methods"]
        if row["name"] == name and row["layer"] == at and row["setting"].items() >= setting.items()
    ]
    part = row["transfer_by"].get(key)
    return two(row[key] if part is None else part)


def least_and_most(fits: list[dict]) -> str:
    transfers = sorted(fit["transfer"] for fit in fits)
    return f"{two(transfers[0])} to {two(transfers[-1])}"


def findings() -> list[str]:
    j = "judge "
    alpha_1, words = "alpha 1", "alpha 0"
    image, masked = "tokens image, alpha 1", [f"outlier mode {mode}, layer -2" for mode in ("none", "zero", "clamp")]
    text_scaled, image_scaled = ([f"normalization {mode}, tokens {kind}" for mode in ("none", "per_dim")]
                                 for kind in ("text", "image"))  # fmt: skip
    a, t, o, n = (lambda *of_: of("alpha", *of_), lambda *of_: of("token", *of_), lambda *of_: of("outlier", *of_),
                  lambda *of_: of("normalization", *of_))  # fmt: skip
    at_1 = {at: of("layer", f"layer {at}", j + "look") for at in (-2, -4, -6, -8)}
    aligned = {
        strength: sorted(of("aligned", f"alpha {strength}, layer {at}", j + "look") for at in (-4, -6, -8))
        for strength in ("0.7", "1")
    }
    return [
        f"at α 1 look {a(alpha_1, j + 'look')} ± {a(alpha_1, j + 'look', 'error')}, another picture "
        f"{a(alpha_1, j + 'look', 'null_mean')}, noise {two(table('alpha')[alpha_1, j + 'look']['noise']['null_mean'])}.",
        f"the style ({a(alpha_1, j + 'style')}, another picture {a(alpha_1, j + 'style', 'null_mean')}), perhaps the mood "
        f"({a(alpha_1, j + 'mood')}, {a(alpha_1, j + 'mood', 'null_mean')}), never the background "
        f"({a(alpha_1, j + 'background')}, {a(alpha_1, j + 'background', 'null_mean')})",
        f"Image tokens at α .3: colour falls from {a(words, j + 'colour')} to "
        f"{t('tokens image, alpha 0.3', j + 'colour')}",
        f"aligned, layers -4 to -8: look {aligned['0.7'][0]} to {aligned['0.7'][-1]} at α .7, {aligned['1'][0]} to "
        f"{aligned['1'][-1]} at 1",
        f"Layer -2: colour {of('aligned', 'alpha 0.7, layer -2', j + 'colour')} to "
        f"{of('aligned', 'alpha 1, layer -2', j + 'colour')}, and no look",
        "look at α 1: " + ", ".join(f"{at} {value}" for at, value in at_1.items()),
        f"α 1: text {t('tokens text, alpha 1', j + 'look')} of the look and {t('tokens text, alpha 1', j + 'shape')} of the "
        f"shape; image tokens {t(image, j + 'look')} and {t(image, j + 'shape')}, all "
        f"{t('tokens all, alpha 1', j + 'look')} and {t('tokens all, alpha 1', j + 'shape')}.",
        f"the background ({t(image, j + 'background')}, another picture {t(image, j + 'background', 'null_mean')})",
        f"Image tokens {layer('image raw include -2', 'mean_correlation')} and "
        f"{layer('image raw exclude -2', 'mean_correlation')}",
        f"{layer('text raw exclude -2', 'mean_correlation')} ± "
        f"{layer('text raw exclude -2', 'mean_correlation', 'layers_errors')} without; with pictures muted .997 and "
        f"{layer('text raw exclude -2', 'mean_correlation', 'layers_muted')}",
        f"none and global the same ({n(text_scaled[0], j + 'look')} of the look), since Z-Image sees no scale; per dimension "
        f"{n(text_scaled[1], j + 'look')}, not more than another picture shows, shape {n(text_scaled[0], j + 'shape')} to "
        f"{n(text_scaled[1], j + 'shape')} and border {n(text_scaled[0], 'border')} to {n(text_scaled[1], 'border')}. "
        f"Image tokens per dimension: border {n(image_scaled[0], 'border')} to {n(image_scaled[1], 'border')}, and the look "
        f"{n(image_scaled[0], j + 'look')} to {n(image_scaled[1], j + 'look')}",
        f"zero leaves border {o(masked[0], 'border')} ± {o(masked[0], 'border', 'error')} at {o(masked[1], 'border')} ± "
        f"{o(masked[1], 'border', 'error')} and takes colour {o(masked[0], j + 'colour')} to 0. Clamp takes border to "
        f"{o(masked[2], 'border')} ± {o(masked[2], 'border', 'error')} and the grid from {o(masked[0], 'grid_16')} to "
        f"{o(masked[2], 'grid_16')}, and the picture with them: look {o(masked[2], j + 'look')}, another picture "
        f"{o(masked[2], j + 'look', 'null_mean')}, words alone {o('words only', j + 'look')}",
        f"16-px grid {a(alpha_1, 'grid_16')}, border {a(alpha_1, 'border')}, both below words alone ({a(words, 'grid_16')}, "
        f"{a(words, 'border')}). Image tokens: grid {t(image, 'grid_16')} ± {t(image, 'grid_16', 'error')}, border "
        f"{t(image, 'border')} ± {t(image, 'border', 'error')}",
        f"at -2 background {of('blend_comparison', 'method append, layer -2', j + 'background')} ± "
        f"{of('blend_comparison', 'method append, layer -2', j + 'background', 'error')}",
        f"at -6 style {of('blend_comparison', 'method append, layer -6', j + 'style')} and colour "
        f"{of('blend_comparison', 'method append, layer -6', j + 'colour')}",
        "published at layer -6 {} ± {} at α 1 with style {}, background {}, mood {}, and".format(
            *(bench("published", -6, key, strength=1.0) for key in ("transfer", "stderr", "style", "background", "mood"))
        ),
        "aligned at α 1: " + ", ".join(f"{at} {bench('aligned', at, strength=1.0)}" for at in (-2, -4, -6, -8)),
        f"the cosine falls from {layer('text dit exclude -2', 'cosine', 'layers_muted')} to "
        f"{layer('text dit exclude -2', 'cosine')} at -2, and from {layer('text dit exclude -6', 'cosine', 'layers_muted')} "
        f"to {layer('text dit exclude -6', 'cosine')} at -6.",
    ]


def methods() -> list[str]:
    lowest = min(
        (row for row in report("takes")["pushing"] if row["way"] == "picture adapter"), key=lambda row: row["strength"]
    )
    own, other = (" / ".join(two(lowest[side][part]) for part in ("background", "style", "mood"))
                  for side in ("own", "another picture"))  # fmt: skip
    fits = report("takes")["fits"]
    good, weak = ([fit for fit in fits if (fit["r2_by"]["tail"] >= 0.6) is worth] for worth in (True, False))
    return [
        f"a picture adapter leaves {own} (background, style, mood) of what words alone show of the reference at "
        f"{lowest['strength']:g}; another picture's leaves {other}",
        f"such fits brought {least_and_most(good)} of a caption, the others {least_and_most(weak)}",
        "`aligned blend` at α .7 transfers {} at -2, {} at -6 and {} at -8".format(
            *(bench("aligned", at, strength=0.7) for at in (-2, -6, -8))
        ),
    ]


def miniature() -> list[str]:
    adapter = [bench("picture adapter", None, strength=strength) for strength in (0.25, 0.5, 0.75)]
    kept = bench("aligned, object kept", -4, alpha=1.0), bench("aligned, object kept", -4, "adherence", alpha=1.0)
    rising = (bench("aligned, alpha along the tokens", -4, key, alpha=0.3) for key in ("transfer", "adherence"))
    return [
        "the adapter says nearly as much without them: {} at strength .25, {} at .5, {} at .75.".format(*adapter),
        "{} at {} adherence is reached by blending at layer -4 and leaving the object's own words alone".format(*kept),
        "rising from .3 at the first token to 1 at the last brings {} at {}, falling from 1 to .3 nothing".format(*rising),
    ]


# What the page calls a row of the files otherwise than these do.
CALLED = {
    "other words": "beside the prompt itself", "unseen combinations": "picture adapter", "text only": "words alone",
    "caption in words": "a caption of the first, in true words", "parts": "**parts**",
    "words of both": "a caption of both, in true words: the bound",
    "parts, their tails averaged": "parts, with the average of the tails",
    "parts of two other pictures": "parts of two other pictures: the null control",
}
KNOWN_WORLD = ("pairs", "rank", "strength", "picture tokens", "layer", "sinks", "tail", "words")


def curve_row(row: dict) -> str:
    """A row of adapter_curves.json as the page's two tables have it."""
    head = f"| {row['what']} | {row['value']} |"
    if row["what"] not in KNOWN_WORLD:
        value = row["value"] if row["what"] == "bound" else CALLED.get(row["value"], row["value"])
        head = f"| {'known words' if row['where'] == 'all' else row['where']} | {value} |"
    parts = " / ".join(f"{value:.2f}".replace("-0.00", "0.00") for value in row["transfer_by"].values())
    fit = "  |  |" if row["pairs"] is None else f" {row['pairs']} | {row['r2']:.2f} |"
    return f"{head}{fit} {row['transfer']:.2f} ± {row['stderr']:.2f} | {parts} | {row['adherence']:.2f} |"


def pair_row(row: dict) -> str:
    """A row of two_pictures.json as the page has it."""
    both = " / ".join(f"{row[name]:.2f}".replace("-0.00", "0.00") for name in ("transfer", "transfer_next"))
    shown = f"{row['parts_of_both']:.2f} ± {row['parts_of_both_stderr']:.2f}"
    return f"| {CALLED.get(row['name'], row['name'])} | {shown} | {both} | {row['adherence']:.2f} |"


def adapter() -> list[str]:
    curves, rows = report("adapter_curves"), {}
    for row in curves["rows"]:
        rows[row["what"], row["value"], row["where"]] = row
    bench = json.loads((ROOT / "benchmarks" / "results" / "adapter.json").read_text(encoding="utf-8"))["rows"]
    whole, pictures, texts, rest, ram, gpu, file = (next(iter([*row.values()][1:])) for row in bench)
    most, held = rows["pairs", 1500, "all"], rows["looks", "unseen combinations", "unseen combinations"]
    shown = [row for row in curves["rows"] if row["value"] == "10 shown, weight 10"]
    style, all_three = (
        sorted(f"{value:.2f}".lstrip("0") for value in values)
        for values in ([row["transfer_by"]["style"] for row in shown], [row["transfer"] for row in shown])
    )
    between = {name: f"{one['error']:.2f} ± {one['stderr']:.2f}" for name, one in curves["between"].items()}
    closer = 1 - curves["between"]["picture adapter"]["error"] / curves["between"]["nearest word"]["error"]
    both = {value: two(row["parts_of_both"]) for (what, value, _), row in rows.items() if what == "two pictures"}
    assert both["average"] == both["append"]
    return [
        f"200 pictures of 768² in {whole:.0f} seconds ({pictures:.0f} for the pictures, {texts:.0f} for the texts, "
        f"{rest:.0f} for files, sums and the solve on the CPU), {ram:.2f} GiB of RAM and {gpu:.2f} GiB on the GPU beside "
        f"the models; the file has {file:.0f} MiB.",
        f"1500 reach {two(most['transfer'])} at adherence {two(most['adherence'])}.",
        f"a caption keeps the colour in {two(rows['bound', 'caption in words', 'other words']['adherence'])}.",
        f"every attribute at {two(min(held['transfer_by'].values()))} or more.",
        f"the style itself to {style[0]} to {style[-1]} and all three parts to {all_three[0]} to {all_three[-1]}",
        f"painted backgrounds lie {between['picture adapter']} (RGB distance)",
        f"the caption of the nearer name {between['nearest word']}, the adapter on another picture "
        f"{between['another picture']}: {closer:.0%} closer than words.",
        f"average and append {both['average']}, average at strength 1.5 {both['average, strength 1.5']}, parts as they "
        f"were then, each slot as it stands and the tail averaged, {both['parts']}, words alone "
        f"{two(rows['bound', 'text only', 'all']['parts_of_both'])}.",
        *(
            f"{file['measured']['machine']}, torch {file['measured']['torch']}, {file['measured']['date']}"
            for file in (curves, report("two_pictures"))
        ),
        *(
            curve_row(row) for (what, _, where), row in rows.items()
            if what != "two pictures" and (what, where) != ("bound", "all")
        ),
        *map(pair_row, report("two_pictures")["rows"]),
    ]


@pytest.mark.parametrize(
    "page, sentences",
    [("findings", findings), ("methods", methods), ("miniature", miniature), ("adapter", adapter)],
)
def test_prose_says_what_the_files_say(page, sentences):
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8").split())
    missing = [sentence for sentence in sentences() if " ".join(sentence.split()) not in text]
    assert not missing, "\n".join(missing)
