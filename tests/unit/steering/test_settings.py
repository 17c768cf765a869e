"""Settings: what each field may be, which of them make a difference, old names, and what a blend does with them."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st

from vl_core import blend, image_delta, mask_outlier_dimensions, normalize, select_tokens
from vl_core.states.layout import insert_pictures, text_layout
from vl_core.states.statistics import ReferenceStatistics
from vl_core.states.vl_states import VLStates
from vl_core.steering.condition import condition
from vl_core.steering.settings import BLENDS, DELTA, FIELDS, OPEN_BLEND, Settings
from vl_core.steering.way import Given, Readings, Steered, Text, find_way
from vl_core.steering.ways.blends import needs_statistics

WIDTH, GRID, BLOCKS = 24, (4, 6), 8
IDS = [151644, 872, 198, 64, 8251, 304, 151645, 198, 151644, 77091, 198]  # user header, three words, tail
MIXING = ["aligned blend", "appended tokens", "blend and append", DELTA, "research: as published"]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TEXT = random(len(IDS), WIDTH, seed=1) * 11 + 2
LAYOUT = text_layout(IDS, layer=-2)


def reading(seed: int) -> VLStates:
    layout = insert_pictures(LAYOUT, [GRID])
    spread = torch.linspace(0.2, 30, WIDTH)
    states = random(BLOCKS + 1, len(layout), WIDTH, seed=seed) * spread
    return VLStates(states, tuple(range(BLOCKS + 1)), BLOCKS, layout)


SEEN, BLIND = reading(2), reading(3)
REFERENCE = ReferenceStatistics.of(random(300, WIDTH, seed=4) * torch.linspace(0.5, 2, WIDTH) + 1)


def settings_of(**values) -> Settings:
    """Settings of the open blend unless they name a way."""
    return Settings.from_dict({"method": "aligned", "alpha": 0.5, **values})


def acted(settings: Settings, seen: VLStates = SEEN, reference: ReferenceStatistics | None = REFERENCE):
    """What comes of settings whose way mixes states."""
    text = Text(TEXT, LAYOUT)
    if settings.strength == 0:
        return Steered(TEXT, LAYOUT, (), text)
    return settings.row.act(text, Readings(seen=seen, muted=BLIND, statistics=(reference,)), settings, Given())


def applied(settings: Settings) -> torch.Tensor:
    return acted(settings).states


def test_the_table_of_fields_is_the_dataclass():
    assert list(FIELDS) == [field.name for field in fields(Settings)]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_a_sentence_a_default_that_it_takes_and_bounds_that_it_keeps(name):
    field, default = FIELDS[name], getattr(Settings(), name)
    assert field.meaning.endswith(".") and field.meaning[0].isupper()
    assert field.check(name, default) == default and type(default) is field.kind
    wrong: list = {
        bool: ["on", 1], str: [3, None], int: [0.5, True, "1"], float: ["1", True, float("nan"), 10**400]
    }[field.kind]  # fmt: skip
    if field.choices():
        wrong.append("no such choice")
    if field.kind in (int, float):
        assert None not in (field.low, field.high)
        assert [field.check(name, bound) for bound in (field.low, field.high)] == [field.low, field.high]
        wrong += [field.low - 1, field.high + 1]
    for value in wrong:
        with pytest.raises(ValueError, match=f"{name}: expected .* got "):
            field.check(name, value)


def test_the_first_choice_is_words_by_the_best_way_there_is():
    assert (Settings().way, Settings().take, Settings().strength) == ("automatic", "the look", 1.0)


def test_names_of_earlier_versions_are_read():
    old = {"method": "append picture", "alpha": 0.5, "outliers": "zero", "threshold": 3, "position": "before_tail"}
    assert Settings.from_dict(old) == Settings(
        "appended tokens", strength=0.5, outlier_mode="zero", outlier_threshold=3, append_position="before_tail"
    )
    assert Settings.from_dict({"mode": "describe"}).way == "words"
    assert Settings.from_dict({"method": "image delta", "alpha": 0.3, "delta_strength": -1.5}) == Settings(
        DELTA, strength=-1.5
    )
    assert Settings.from_dict({"method": "append", "alpha": 0.3, "delta_strength": 2.0}).strength == 0.3
    assert Settings("blend aligned") == Settings("aligned blend")


def test_other_values_of_some_settings():
    changed = Settings("words", strength=0.5).with_values({"alpha": 1.2, "take": "style"})
    assert changed == Settings("words", "style", 1.2)
    assert Settings("words").with_values({"method": "append"}).way == OPEN_BLEND


def test_a_take_that_ends_early_does_so_only_where_the_pictures_own_states_are_mixed():
    early = Settings("aligned blend", "composition")
    assert early.window == (0, 0.4) and Settings("words", "composition").window == (0, 1)
    assert replace(early, end_percent=0.2).window == (0, 0.2) and replace(early, start_percent=0.3).window == (0.3, 0.4)
    assert replace(early, start_percent=0.6).window == (0.6, 1)


def test_what_makes_no_difference_is_left_out():
    assert Settings("words", layer=-3).effective() == Settings("words").effective()
    assert "layer" not in Settings("words").effective() and Settings("aligned blend").effective()["layer"] == -6
    assert Settings("aligned blend", layer=-6).effective() == Settings("aligned blend").effective()
    assert Settings(strength=0).effective() == Settings("aligned blend", "style", 0).effective()
    assert Settings(strength=0, described=True).effective() != Settings(strength=0).effective()
    assert Settings("words", "style").effective() != Settings("words").effective()


def test_defaults_of_the_open_blend_mix_the_same_words_at_the_layer_z_image_reads():
    expected, _ = blend(TEXT, SEEN.at(-2)[0], 0.5, text_layout=LAYOUT, vl_layout=SEEN.layout)
    assert torch.equal(applied(settings_of()), expected)


@pytest.mark.parametrize("method", BLENDS)
@pytest.mark.parametrize("sinks", ["exclude", "include"])
def test_a_blend_is_the_stages_of_the_nodes_one_after_another(method, sinks):
    settings = settings_of(
        method=method, alpha=0.6, layer=-4, tokens="text" if method == "aligned" else "all", outlier_mode="clamp",
        outlier_threshold=3, normalization="per_dim", sinks=sinks, space="slerp", antialias=False,
    )
    x, layout = select_tokens(*SEEN.at(-4), settings.tokens)
    x, _ = mask_outlier_dimensions(x, 3, "clamp", reference=REFERENCE, sinks=sinks)
    x, _ = normalize(x, "per_dim", REFERENCE, sinks=sinks)
    expected, info = blend(
        TEXT, x, 0.6, method, "slerp", text_layout=LAYOUT, vl_layout=layout, sinks=sinks, antialias=False
    )
    found = acted(settings)
    report = "\n".join(found.lines)
    assert torch.equal(found.states, expected)
    assert found.layout.token_ids.tolist() == info.layout.token_ids.tolist()
    assert info.describe() in report and "layer -4" in report


@pytest.mark.parametrize("way", MIXING)
def test_a_way_is_what_condition_does_with_it(way):
    expected, _, report = condition(TEXT, LAYOUT, SEEN, find_way(way).layer, way, 0.5, muted=BLIND)
    found = acted(Settings(way, strength=0.5))
    assert torch.equal(found.states, expected) and "\n".join(found.lines) == report


def test_image_delta_is_that_of_its_stage():
    expected, _ = image_delta(
        TEXT, SEEN.at(-2)[0], BLIND.at(-2)[0], -1.5, text_layout=LAYOUT, vl_layout=SEEN.layout, rank=2
    )
    assert torch.equal(applied(Settings(DELTA, strength=-1.5, rank=2)), expected)


@pytest.mark.parametrize("downsample", [1, 2, 3])
def test_append_pools_last_and_the_others_first(downsample):
    appended = applied(settings_of(method="append", tokens="image_no_markers", downsample=downsample))
    rows, columns = (-(-side // downsample) for side in GRID)
    assert len(appended) == len(IDS) + rows * columns
    pooled, layout = select_tokens(*SEEN.at(-2), "image", downsample=downsample)
    expected, _ = blend(TEXT, pooled, 0.5, "resample", text_layout=LAYOUT, vl_layout=layout)
    assert torch.equal(applied(settings_of(method="resample", tokens="image", downsample=downsample)), expected)


def test_outliers_of_image_tokens_only_leave_the_words_as_they_are():
    changed = dict(outlier_mode="zero", outlier_threshold=2, tokens="all")
    plain = applied(settings_of())
    idle = settings_of(**changed, outlier_scope="image tokens")
    assert torch.equal(applied(idle), plain)
    assert idle.effective() == settings_of().effective() and not needs_statistics(idle)
    assert not torch.equal(applied(settings_of(**changed)), plain)
    scaled = settings_of(normalization="global", space="raw")  # its std is over all tokens
    assert not torch.allclose(applied(replace(scaled, **changed, outlier_scope="image tokens")), applied(scaled))


@pytest.mark.parametrize("settings", [
    settings_of(normalization="per_dim"), settings_of(normalization="global"), settings_of(outlier_mode="clamp"),
    Settings("aligned blend", normalization="per_dim"), Settings("appended tokens", outlier_mode="zero"),
], ids=lambda settings: f"{settings.way} {settings.normalization} {settings.outlier_mode}")  # fmt: skip
def test_a_missing_reference_is_asked_for(settings):
    assert needs_statistics(settings) and settings.row.needs(settings, Given()).statistics
    with pytest.raises(ValueError, match=r"reference: normalization .* got none"):
        acted(settings, reference=None)


@pytest.mark.parametrize("settings", [
    settings_of(normalization="global", target_std=61), settings_of(), Settings("research: as published"),
    Settings(DELTA),
], ids=lambda settings: f"{settings.way} {settings.normalization}")  # fmt: skip
def test_no_reference_is_asked_for_where_none_is_used(settings):
    assert not settings.row.needs(settings, Given()).statistics
    acted(settings, reference=None)


@pytest.mark.parametrize(("values", "message"), [
    ({"alpha": 1.2}, r"strength: expected 0 \(words only\) to 1 with open blend, got 1.2"),
    ({"alpha": float("nan")}, "strength: expected a number from -3 to 3, got nan"),
    ({"way": "append picture", "alpha": -1}, "strength: expected 0"),
    ({"method": "cut"}, "way: expected one of automatic, words"),
    ({"take": "hats"}, "take: expected one of the look, style"),
    ({"start_percent": 0.5, "end_percent": 0.5}, "start_percent: expected less than end_percent"),
    ({"layer": -2.5}, "layer: expected a whole number from -37 to 0, got -2.5"),
    ({"layer": 1}, "layer: expected a whole number from -37 to 0, got 1"),
    ({"tokens": "image"}, "tokens: expected all or text with aligned"),
    ({"outlier_threshold": 0.5}, "outlier_threshold: expected a number from 1 to 1000"),
    ({"downsample": True}, "downsample: expected a whole number"),
    ({"antialias": 1}, "antialias: expected true or false, got 1"),
    ({"rank": float("inf")}, "rank: expected a whole number"),
    ({"space": None}, "space: expected one of dit, raw, slerp, got None"),
], ids=lambda value: str(value)[:40])  # fmt: skip
def test_settings_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**values)


def test_settings_survive_json_and_refuse_what_they_do_not_know():
    settings = Settings(DELTA, "style", -1, layer=-6, rank=3, remove_prompt_direction=True)
    assert Settings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings
    assert Settings.from_dict({}) == Settings()
    with pytest.raises(ValueError, match=r"settings: expected only way, .* got 'treshold'"):
        Settings.from_dict({"treshold": 3})


STAGES = (  # fields that reach the stages of ways that mix states
    "way", "method", "strength", "layer", "tokens", "downsample", "space", "changed", "curve", "curve_end",
    "outlier_mode", "outlier_threshold", "outlier_direction", "outlier_scope", "outlier_gamma", "normalization",
    "target_std", "append_position", "remove_prompt_direction", "rank", "sinks", "antialias",
)
SMALL = {
    "way": [*MIXING, OPEN_BLEND], "strength": [-1.0, 0.0, 0.3, 1.0], "layer": [0, -2, -6], "downsample": [1, 2],
    "outlier_threshold": [2.0, 5.0], "outlier_gamma": [0.5, 1.0], "target_std": [0.0, 5.0], "rank": [0, 2],
    "curve_end": [0.0, 0.5],
}


def values_of(name: str) -> st.SearchStrategy:
    field = FIELDS[name]
    if name in SMALL:
        return st.sampled_from(SMALL[name])
    return st.booleans() if field.kind is bool else st.sampled_from(field.choices())


@st.composite
def any_settings(draw) -> Settings:
    values = {name: draw(values_of(name)) for name in STAGES}
    if values["method"] == "aligned":
        values["tokens"] = draw(st.sampled_from(["all", "text"]))
    if values["way"] != DELTA:
        values["strength"] = abs(values["strength"])
    return Settings(**values)


@given(any_settings(), st.data())
@budget(max_examples=150, deadline=None)
def test_settings_of_equal_effect_give_equal_states(settings, data):
    """What ``effective`` leaves out makes no difference: otherwise a sweep would show one picture for two recipes."""
    name = data.draw(st.sampled_from(STAGES))
    try:
        other = replace(settings, **{name: data.draw(values_of(name))})
    except ValueError:
        return
    if other.effective() == settings.effective():
        assert torch.equal(applied(other), applied(settings))


SHOWING = {  # a setting under which each field makes a difference, and another value of it
    "way": ({}, "aligned blend"), "method": ({}, "resample"), "strength": ({}, 0.7), "layer": ({}, -6),
    "tokens": ({"method": "resample"}, "image"), "downsample": ({"method": "append"}, 2), "space": ({}, "raw"),
    "outlier_mode": ({}, "zero"), "outlier_threshold": ({"outlier_mode": "clamp"}, 5),
    "outlier_direction": ({"outlier_mode": "zero", "outlier_threshold": 2}, "under"),
    "outlier_scope": ({"outlier_mode": "zero", "method": "resample"}, "image tokens"),
    "outlier_gamma": ({"outlier_mode": "scale", "outlier_threshold": 2}, 1.0), "normalization": ({}, "per_dim"),
    "target_std": ({"normalization": "global", "space": "raw"}, 61.0),
    "changed": ({"way": "aligned blend"}, "prompt"), "curve": ({"way": "aligned blend"}, "ease_in"),
    "curve_end": ({"way": "aligned blend", "curve": "linear"}, 0.7),
    "append_position": ({"method": "append"}, "before_tail"),
    "remove_prompt_direction": ({"way": DELTA}, True), "rank": ({"way": DELTA}, 2),
    "sinks": ({"normalization": "per_dim"}, "include"), "antialias": ({"method": "resample"}, False),
}


@pytest.mark.parametrize("name", STAGES)
def test_every_field_changes_the_states_somewhere_and_then_counts_as_effective(name):
    around, value = SHOWING[name]
    before = settings_of(**around)
    after = replace(before, **{name: value})
    assert before.effective() != after.effective()
    seen = SEEN
    if name == "sinks":  # a token hundreds of times larger, where the text has its own
        states = SEEN.states.clone()
        states[:, 0] *= 300
        seen = replace(SEEN, states=states)
    pair = [acted(one, seen).states for one in (before, after)]
    assert not torch.equal(*pair)
