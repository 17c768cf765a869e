"""Measuring learned looks on the miniature: geometry against closed forms, what is told, the stage's rows."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

pytest.importorskip("diffusers", reason="the miniature is diffusers classes")
pytest.importorskip("transformers", minversion="4.57", reason="Qwen3-VL needs transformers 4.57")

from miniature import world
from miniature.measure import look_ground, sheet
from miniature.measure.between import BetweenColours, ring_colour
from miniature.measure.chain import Chain, as_image
from miniature.measure.look_geometry import PROPERTIES, STYLES, grating, lookalikes, slope
from miniature.measure.look_painter import MiniaturePainter
from miniature.measure.look_rivals import Rival, _sharing, backwards
from miniature.measure.look_units import FULL, PLAIN, SMALL, Row, Unit, curves, qualities, share, units
from miniature.measure.looks import Study, take_over_rivals, wanted
from miniature.train import assemble
from miniature.train.forwards import DIT_TOKENS, dit_block, dit_rotary, sample
from miniature.train.training import Options
from vl_core import apply_look
from vl_core.looks.lesson import Lesson
from vl_core.looks.options import QUALITIES
from vl_core.looks.start import Words

SIDE = world.SIDE


def plane_wave(period: float, angle: float, phase: float = 0.3) -> torch.Tensor:
    """``(3, 128, 128)``: light that waves along an angle in degrees."""
    line = torch.arange(SIDE).float()
    y, x = torch.meshgrid(line, line, indexing="ij")
    along = x * math.cos(math.radians(angle)) + y * math.sin(math.radians(angle))
    return (0.3 * torch.sin(2 * math.pi * along / period + phase)).expand(3, -1, -1)


@pytest.mark.parametrize("period, angle", [(11.0, 31.0), (12.5, 45.0), (14.0, 59.0), (12.0, 0.0), (12.0, 120.0)])
def test_period_and_angle_of_a_wave_are_read_off(period, angle):
    (found,), (turned,) = grating(plane_wave(period, angle)[None], 8.5, 17.0)
    assert float(found) == pytest.approx(period, abs=0.2)
    apart = abs(float(turned) - angle)
    assert min(apart, 180 - apart) < 1.0


@pytest.mark.parametrize("direction", [90.0, 75.0, -30.0, 170.0])
def test_the_direction_of_a_ramp_is_read_off_around_an_object(direction):
    line = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(line, line, indexing="ij")
    light = -0.3 * (x * math.cos(math.radians(direction)) + y * math.sin(math.radians(direction)))
    light[40:90, 30:80] = 0.9
    (found,) = slope(light.expand(1, 3, -1, -1))
    assert float(found) == pytest.approx(direction, abs=0.1)


def test_the_world_varies_what_is_read_off_and_no_caption_tells_it():
    spans = {"angle of stripes": 28.6, "period of stripes": 3.0, "period of checks": 3.2,
             "direction of a gradient": 34.4}
    middles = {"angle of stripes": 45.0, "period of stripes": 12.5, "period of checks": 13.3,
               "direction of a gradient": 90.0}
    for one in PROPERTIES:
        pairs = lookalikes(24, one.style, 3)
        pictures, _ = world.render(pairs.references, torch.Generator().manual_seed(4))
        found = one.read(pictures)
        # Even over a span; the edges of an object may disturb a single reading.
        expected = spans[one.name] / math.sqrt(12)
        assert 0.6 * expected < float(found.std()) < 1.5 * expected, one.name
        assert float(found.mean()) == pytest.approx(middles[one.name], abs=0.15 * spans[one.name])
        captions = {
            ", ".join(world.look_phrases(scene)).replace(f"{world.COLORS[scene.background]} background", "")
            for scene in pairs.references.records()
        }
        assert len({caption.replace(" an ", " a ") for caption in captions}) == 1


def test_an_angle_is_compared_around_its_turn():
    angle = next(one for one in PROPERTIES if one.name == "angle of stripes")
    assert angle.error(torch.tensor([179.0]), torch.tensor([2.0])).tolist() == [3.0]


@pytest.mark.parametrize("style", STYLES)
def test_lookalikes_disagree_with_their_prompts(style):
    pairs = lookalikes(40, style, 7)
    scenes = pairs.references
    assert (scenes.color[:, 0] != scenes.background).all()
    assert (pairs.color != scenes.background).all() and (pairs.color != scenes.color[:, 0]).all()
    assert (pairs.shape != scenes.shape[:, 0]).all()
    for prompt, color, shape in zip(pairs.prompts, pairs.color.tolist(), pairs.shape.tolist(), strict=True):
        assert prompt.endswith(f"{world.COLORS[color]} {world.SHAPES[shape]}")


def test_rows_differ_and_begin_with_the_qualities():
    names = [*QUALITIES, "good, nothing kept"]
    assert [row.name for row in qualities()] == [name for one in names for name in (one, f"{one}, 4 pictures")]
    found = curves()
    assert found[0] == Row("plain", PLAIN)
    assert len({row.key for row in found}) == len(found) > 20
    assert sum(row.options == PLAIN for row in found) == 5  # three that are told otherwise, one beside other prompts


def test_what_looks_leave_alone_on_the_miniature_is_no_prompt_of_a_bench():
    others = world.other_things()
    plain = {world.with_article(f"{color} {shape}") for color in world.COLORS for shape in world.SHAPES}
    assert not plain & set(others)
    told = " ".join(others).split()
    assert len(set(world.COLORS) & set(told)) >= 9 and len(set(world.SHAPES) & set(told)) >= 7


@pytest.mark.parametrize(
    "said, things",
    [
        ("a large orange triangle at the top, on a blue background, in flat style", "an orange triangle"),
        ("a large orange cross at the right and a small red ring at the left", "an orange cross and a red ring"),
        ("a red ring", "a red ring"), ("a photograph of a large cat", "a photograph of a large cat"), ("", ""),
    ],
)
def test_things_are_told_without_size_and_place(said, things):
    assert world.things_of(said) == things


def test_every_unit_falls_to_one_shard_and_their_loads_are_alike():
    units = [Unit(str(number), (), float(cost), iter) for number, cost in enumerate((70, 9, 30, 30, 5, 22, 8, 41))]
    parts = [share(units, f"{index}/3") for index in range(3)]
    assert sorted(unit.name for part in parts for unit in part) == sorted(unit.name for unit in units)
    loads = [sum(unit.cost for unit in part) for part in parts]
    assert max(loads) - min(loads) <= 10 and share(units, "") == units


def test_asked_units_come_in_the_order_asked_for():
    units = [Unit(name, (("pairs", name),), 1.0, iter) for name in ("quick", "good", "best", "good: noise")]
    assert [unit.name for unit in wanted(units, "best;good")] == ["best", "good", "good: noise"]
    assert wanted(units, "") == units


def test_a_report_of_part_of_the_rows_names_the_rest(tmp_path):
    count, generator = 6, torch.Generator().manual_seed(1)
    names = ("color", "shape", "leak", *world.LOOK, *(f"next_{name}" for name in world.LOOK), "parts_of_both",
             "distance", "from_first", *(one.name for one in PROPERTIES))
    ground = SimpleNamespace(name="pairs", texts=range(count), numbers=range(2 * count), captions={})
    grounds = {name: ground for name in (*FULL, *SMALL, *STYLES)}
    grounds["pairs"] = grounds[SMALL[0]] = SimpleNamespace(**{**vars(ground), "captions": {"text": (), "caption": ()}})
    grounds["between"] = SimpleNamespace(**{**vars(ground), "captions": {"first name": (), "second name": ()}})
    every = units(grounds, toy=False)
    kept = [unit for unit in every if unit.name in ("bounds and start", "quick", "painting over at 0.6")]
    rows = {
        "/".join(key): {name: torch.rand(count, generator=generator) for name in names}
        for unit in kept for key in unit.keys
    }
    rows |= {f"{style}/words": rows["pairs/text"] for style in STYLES}
    rows["pairs/text"] = rows["pairs/text"] | {name: torch.zeros(count) for name in world.LOOK}
    ledger = SimpleNamespace(rows=rows, mostly_with=lambda: {"machine": "none"})
    report = Study(ledger, Options(tmp_path)).report({}, grounds, every)
    assert [row["name"] for row in report["rows"]] == ["quick"]
    assert [(null["of"], null["control"]) for null in report["nulls"]] == [("quick", "another picture")]
    assert [row["name"] for row in report["rivals"]] == ["painting over at 0.6"]
    assert report["curves"] == report["strengths"] == report["two_looks"] == []
    assert len(report["left_out"]) == len(every) - 3 and "good" in report["left_out"]
    (shown,) = report["rows"]
    expected = rows[f"between/own: {qualities()[0].key}"]["distance"]
    assert shown["between"]["mean"] == pytest.approx(float(expected.mean()))
    gain = rows["between/start"]["distance"] - expected
    assert shown["nearer_than_start"]["mean"] == pytest.approx(float(gain.mean()))
    assert set(report["geometry"][0]["error"]) == {
        "words", "start", "quick", "quick: another picture", "painting over at 0.6",
        "painting over at 0.6: another picture",
    }


def test_rivals_come_from_an_earlier_report_of_the_same_sample():
    def told(asked, left_out, rivals, **error):
        return {
            "asked": {"pairs": asked}, "measured": {"date": "2026-01-01"}, "left_out": left_out,
            "rivals": [{"name": name} for name in rivals], "geometry": [{"error": error, "leak": {}}],
        }

    earlier = told(3, [], ["over", "under"], **{"over": 1, "over: another picture": 2, "under": 3, "start": 4})
    report = told(3, ["over", "good"], ["under"], start=5)
    take_over_rivals(report, earlier)
    assert [row["name"] for row in report["rivals"]] == ["under", "over"] and report["left_out"] == ["good"]
    assert report["geometry"][0]["error"] == {"start": 5, "over": 1, "over: another picture": 2}
    assert report["rivals_measured"] == {"names": ["over"], "date": "2026-01-01"}
    other = told(4, ["over"], [])
    take_over_rivals(other, earlier)
    assert other["rivals"] == [] and "rivals_measured" not in other


def test_few_colours_between_names_are_spread_over_all():
    chosen = BetweenColours.draw(SimpleNamespace(device=torch.device("cpu")), 9)
    named = [color for pair in chosen.pairs for color in pair]
    assert len(chosen.pairs) == 9 and max(map(named.count, named)) <= 4  # the first nine all have red
    # What is read off the pictures themselves is their goal; a name's own colour lies half the way off.
    found = chosen.read(chosen.pictures)
    assert found["distance"].max() < 1e-3
    first, second = (torch.tensor(world.RGB)[[pair[side] for pair in chosen.pairs]] for side in (0, 1))
    torch.testing.assert_close(found["from_first"], (first - second).norm(dim=1) / 2, atol=1e-3, rtol=0)


def test_a_look_is_learned_once(monkeypatch):
    asked = []

    def learn_looks(painter, lessons, options, others, at_once):
        asked.append(len(lessons))
        return [f"{lesson.words.look} {options.steps}" for lesson in lessons]

    monkeypatch.setattr(look_ground, "learn_looks", learn_looks)
    monkeypatch.setattr(look_ground, "know", lambda *_: None)
    painter = SimpleNamespace(learned={}, see=lambda *_: None, know=lambda _: None,
                              chain=SimpleNamespace(device=torch.device("cpu")))
    lessons = [Lesson((torch.full((16, 16, 3), shade),), Words(("a thing",), "grey")) for shade in (0.1, 0.2, 0.1)]
    for part, options in ((lessons[:1], PLAIN), (lessons, PLAIN), (lessons[:2], QUALITIES["quick"])):
        looks = look_ground.learn(painter, part, options, ())
        assert looks == [f"grey {options.steps}"] * len(part)
    assert asked == [1, 1, 2]  # the same picture and words again are the same look


def test_a_ground_without_a_name_is_judged_by_its_distance():
    pair = torch.tensor(world.RGB)[:2]
    logits = {"color": torch.ones(1, 10), "shape": torch.ones(1, 8)}
    near, far = (torch.lerp(pair[0], pair[1], share) for share in (0.4, 0.1))
    judged = [
        sheet.verdict_of(logits, 0, sheet.Wish(0, 0), one_picture()[0], (pair.mean(0), found))
        for found in (near, far)
    ]
    length = float((pair[0] - pair[1]).norm())
    assert judged[0] == (f"prompt 2 of 2 · ground {0.1 * length:.2f} off", sheet.GOOD)
    assert judged[1] == (f"prompt 2 of 2 · ground {0.4 * length:.2f} off", sheet.PLAIN)


# --- rivals, held to what they are made of ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain():
    return Chain.load(assemble.MODELS)


def test_the_demos_colour_without_a_name_is_learned_where_words_miss_it(chain):
    """Its null is the look of a picture from the world, learned alike."""
    reference, prompt, wish = sheet.without_a_name(chain)
    named = torch.tensor(world.RGB)
    assert (named - reference.ground).norm(dim=1).argmin() == reference.scene.background
    assert (named - reference.ground).norm(dim=1).min() > 0.5
    shape, color, _ = reference.scene.objects[0]
    assert wish.shape != shape and wish.color not in (color, reference.scene.background)
    _, picture = one_picture()
    looks = sheet.learned(chain, [reference, sheet.Reference(as_image(picture)[0])])
    states, layout = chain.words(prompt)
    said = chain.words(f"{prompt}, {looks[0].origin.look}")[0]
    painted = chain.paint([*(apply_look(states, layout, look)[0] for look in looks), said], [7, 7, 7])
    own, null, words = (ring_colour(painted) - reference.ground).norm(dim=1).tolist()
    assert own < 0.2 and own < 0.5 * min(null, words)


def one_picture():
    scenes = world.sample_scenes(1, torch.Generator().manual_seed(1))
    return scenes.records()[0], world.render(scenes, torch.Generator().manual_seed(2))[0]


def test_a_way_to_noise_leads_back(chain):
    """Fine steps down the way that led up bring the latents again."""
    scene, picture = one_picture()
    told = [chain.words(world.canonical_caption(scene))[0]]
    latents = MiniaturePainter(chain).latents_of(picture)
    way = backwards(chain.pipeline.transformer, latents, told, 16)
    assert len(way) == 16
    back = sample(chain.pipeline.transformer, told, way[0], steps=64)
    assert (back - latents).square().mean() < 0.1 * (way[0] - latents).square().mean()


def test_a_reference_that_is_the_painting_doubles_its_keys(chain):
    """Then attention is as with log 2 added to the scores of the picture's own keys, for the picture's tokens."""
    layer = chain.pipeline.transformer.layers[3]
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(1, 96, 192, generator=generator)
    condition = torch.randn(1, layer.adaLN_modulation[0].in_features, generator=generator)
    cosine, sine = dit_rotary(chain.pipeline.transformer, 32, "cpu")
    bias = torch.zeros(96, 96)
    bias[:DIT_TOKENS, :DIT_TOKENS] = math.log(2.0)
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        with mock.patch("torch.nn.functional.scaled_dot_product_attention", partial(attend, attn_mask=bias)):
            expected = dit_block(layer, x, cosine, sine, condition)
        plain = dit_block(layer, x, cosine, sine, condition)
        found = _sharing({id(layer): x}, {id(layer)}, False, layer, x, cosine, sine, condition)
        alone = _sharing({id(layer): x}, set(), False, layer, x, cosine, sine, condition)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (expected - plain).abs().max() > 0.01
    assert torch.equal(alone, plain)


def test_painting_over_begins_at_its_noise(chain):
    """At denoise 1 it is painting; the less there is of it, the nearer the reference."""
    states = [chain.words("a blue star")[0]]
    _, picture = one_picture()
    latents = MiniaturePainter(chain).latents_of(picture)
    whole, more, less = (
        Rival("over", denoise=denoise).paint(chain, states, [5], latents, [], 4, 1.0) for denoise in (1.0, 0.8, 0.4)
    )
    torch.testing.assert_close(whole, chain.paint(states, [5], steps=4, guidance=1.0), atol=1e-4, rtol=1e-4)
    far, middle, near = ((one - picture).square().mean() for one in (whole, more, less))
    assert near < middle < far
