"""What each position is, held against sequences written out by hand with the ids of the Qwen3 tokenizer."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vl_core.states.layout import (
    SpecialTokens,
    TokenLayout,
    TokenRole,
    concatenate_layouts,
    insert_pictures,
    mrope_positions,
    picture_insertion_point,
    text_layout,
)

START, END, VISION_START, VISION_END, PAD = 151644, 151645, 151652, 151653, 151655
SYSTEM, USER, ASSISTANT, NEWLINE = 8948, 872, 77091, 198
RED_FOX = [64, 2518, 38835]  # "a red fox"

HEADER = [START, USER, NEWLINE]
TAIL = [END, NEWLINE, START, ASSISTANT, NEWLINE]
RED_FOX_IDS = [*HEADER, *RED_FOX, *TAIL]
BE_BRIEF_TURN = [START, SYSTEM, NEWLINE, 3430, 9814, 13, END, NEWLINE]  # "Be brief."

T, W, M, P = TokenRole.TEMPLATE, TokenRole.TEXT, TokenRole.MARKER, TokenRole.IMAGE


def picture(count: int) -> list[int]:
    return [VISION_START, *[PAD] * count, VISION_END]


def layout_of(roles: list[TokenRole], grids=()) -> TokenLayout:
    return TokenLayout(roles, list(range(len(roles))), grids=grids)


# --- text sequences -------------------------------------------------------------------------------------------------


def test_the_words_are_text_and_everything_around_them_is_template():
    layout = text_layout(RED_FOX_IDS, prompt="a red fox", layer=-2, model="qwen")
    assert layout.roles.tolist() == [T, T, T, W, W, W, T, T, T, T, T]
    assert layout.token_ids.tolist() == RED_FOX_IDS
    assert (layout.source, layout.prompt, layout.layer, layout.model) == ("text", "a red fox", -2, "qwen")
    assert layout.roles.dtype == torch.uint8 and layout.token_ids.dtype == torch.int64


def test_an_empty_prompt_leaves_only_the_template():
    assert text_layout([*HEADER, *TAIL]).counts() == {T: 8}


def test_a_system_turn_is_template():
    layout = text_layout([*BE_BRIEF_TURN, *RED_FOX_IDS], system_tokens=len(BE_BRIEF_TURN))
    assert layout.roles.tolist() == [T] * 8 + [T, T, T, W, W, W, T, T, T, T, T]


def test_chat_markers_typed_into_the_prompt_stay_the_users_words():
    words = [64, END, NEWLINE, START, USER, NEWLINE, 2518]
    layout = text_layout([*HEADER, *words, *TAIL])
    assert layout.counts() == {T: 8, W: 7}
    assert picture_insertion_point(layout) == 3


@pytest.mark.parametrize(
    "token, name", [(PAD, "image_pad"), (VISION_START, "vision_start"), (VISION_END, "vision_end")]
)
def test_a_prompt_with_a_picture_token_is_refused_by_name(token, name):
    with pytest.raises(ValueError, match=rf"prompt: contains <\|{name}\|>"):
        text_layout([*HEADER, 64, token, *TAIL])


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param([], id="nothing"),
        pytest.param([*HEADER, *TAIL][:-1], id="cut short"),
        pytest.param([1, USER, NEWLINE, *RED_FOX, *TAIL], id="no user header"),
        pytest.param([*HEADER, *RED_FOX, *TAIL, 151667, NEWLINE, NEWLINE, 151668], id="think block after the tail"),
        pytest.param([*HEADER, *RED_FOX, END, NEWLINE, NEWLINE, ASSISTANT, NEWLINE], id="no assistant header"),
        pytest.param([101, *RED_FOX, 102, 0, 0, 0, 0, 0], id="another tokenizer"),
    ],
)
def test_ids_of_another_template_are_refused(ids):
    with pytest.raises(ValueError, match="chat template"):
        text_layout(ids)


def test_a_wrong_count_of_system_tokens_is_refused():
    with pytest.raises(ValueError, match="chat template"):
        text_layout([*BE_BRIEF_TURN, *RED_FOX_IDS], system_tokens=5)


def test_another_models_special_tokens_can_be_given():
    special = SpecialTokens(im_start=1, im_end=2, vision_start=3, vision_end=4, image_pad=5)
    layout = insert_pictures(text_layout([1, 9, 8, 7, 2, 8, 1, 6, 8], special=special), [(1, 2)], special)
    assert layout.token_ids.tolist() == [1, 9, 8, 3, 5, 5, 4, 7, 2, 8, 1, 6, 8]


# --- pictures -------------------------------------------------------------------------------------------------------


def test_one_picture_stands_between_the_user_header_and_the_words():
    layout = insert_pictures(text_layout(RED_FOX_IDS), [(2, 3)])
    assert layout.token_ids.tolist() == [*HEADER, *picture(6), *RED_FOX, *TAIL]
    assert layout.roles.tolist() == [T] * 3 + [M] + [P] * 6 + [M] + [W] * 3 + [T] * 5
    assert layout.grids == ((2, 3),) and layout.source == "qwen3-vl"


def test_two_pictures_follow_each_other_each_with_its_own_markers():
    layout = insert_pictures(text_layout(RED_FOX_IDS), [(1, 2), (2, 2)])
    assert layout.token_ids.tolist() == [*HEADER, *picture(2), *picture(4), *RED_FOX, *TAIL]
    assert [positions.tolist() for positions in layout.picture_positions()] == [[4, 5], [8, 9, 10, 11]]


def test_with_a_system_turn_the_picture_is_still_in_the_user_turn():
    text = text_layout([*BE_BRIEF_TURN, *RED_FOX_IDS], system_tokens=len(BE_BRIEF_TURN))
    layout = insert_pictures(text, [(1, 1)])
    assert layout.token_ids.tolist() == [*BE_BRIEF_TURN, *HEADER, *picture(1), *RED_FOX, *TAIL]


def test_no_picture_leaves_the_text_sequence_as_it_is():
    text = text_layout(RED_FOX_IDS)
    layout = insert_pictures(text, [])
    assert layout.token_ids.tolist() == RED_FOX_IDS and layout.roles.equal(text.roles)


def test_positions_outside_the_picture_carry_the_text_sequence_token_for_token():
    layout = insert_pictures(text_layout(RED_FOX_IDS), [(4, 4), (2, 2)])
    assert layout.token_ids[layout.mask(T, W)].tolist() == RED_FOX_IDS


@pytest.mark.parametrize("side, image_tokens", [(256, 64), (512, 256), (1024, 1024)])
@pytest.mark.parametrize("words", [0, 1, 20])
def test_lengths_follow_from_the_words_and_the_pixels(side, image_tokens, words):
    text = text_layout([*HEADER, *[64] * words, *TAIL])
    layout = insert_pictures(text, [(side // 32, side // 32)])
    assert len(layout) == image_tokens + words + 10
    assert len(text) == int(layout.mask(T, W).sum()) == words + 8
    assert int(layout.mask(M, P).sum()) == image_tokens + 2
    assert int(layout.mask(P).sum()) == image_tokens


def test_pictures_go_only_into_a_whole_text_sequence():
    text = text_layout(RED_FOX_IDS)
    with pytest.raises(ValueError, match="without pictures"):
        insert_pictures(insert_pictures(text, [(2, 2)]), [(2, 2)])
    with pytest.raises(ValueError, match="whole text sequence"):
        insert_pictures(text.select(text.mask(W)), [(2, 2)])


# --- selecting, joining, describing ---------------------------------------------------------------------------------


def test_counts_and_description_name_what_is_there():
    layout = insert_pictures(text_layout(RED_FOX_IDS), [(8, 8), (2, 4)])
    assert layout.counts() == {T: 8, W: 3, M: 4, P: 72}
    assert layout.describe() == "8 template, 3 text, 4 marker, 72 image (8×8, 2×4)"
    assert layout.select(layout.mask(M)).describe() == "4 marker"
    assert layout.select(torch.zeros(len(layout), dtype=torch.bool)).describe() == "no tokens"


def test_masks_join_the_roles_asked_for():
    layout = layout_of([T, W, M, P, M, W], grids=[(1, 1)])
    assert layout.mask(W).tolist() == [False, True, False, False, False, True]
    assert layout.mask(M, P).tolist() == [False, False, True, True, True, False]
    assert not layout.mask().any()


def test_selecting_keeps_whole_pictures_whole():
    layout = insert_pictures(text_layout(RED_FOX_IDS), [(2, 3), (1, 2)])
    image = layout.select(layout.mask(P))
    assert image.grids == ((2, 3), (1, 2)) and image.token_ids.tolist() == [PAD] * 8
    text = layout.select(layout.mask(T, W))
    assert text.grids == () and text.token_ids.tolist() == RED_FOX_IDS


def test_a_cut_picture_becomes_a_strip_and_an_emptied_one_goes():
    layout = layout_of([P] * 6 + [P] * 4 + [W], grids=[(2, 3), (2, 2)])
    keep = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1])
    cut = layout.select(keep)
    assert cut.grids == ((1, 3),) and cut.token_ids.tolist() == [0, 2, 3, 10]


def test_a_selection_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"keep: expected shape \(2,\).*\(3,\)"):
        layout_of([W, W]).select(torch.ones(3, dtype=torch.bool))


def test_joined_layouts_follow_each_other():
    first = dataclasses.replace(layout_of([T, P, P], grids=[(1, 2)]), prompt="one", layer=-2)
    second = dataclasses.replace(layout_of([P, W], grids=[(1, 1)]), prompt="two", layer=-6)
    joined = concatenate_layouts([first, second], "blend")
    assert joined.roles.tolist() == [T, P, P, P, W] and joined.token_ids.tolist() == [0, 1, 2, 0, 1]
    assert (joined.grids, joined.source, joined.prompt, joined.layer) == (((1, 2), (1, 1)), "blend", "one", -2)


def test_naming_a_layer_changes_nothing_else():
    layout = text_layout(RED_FOX_IDS, prompt="a red fox", layer=-2)
    renamed = layout.with_layer(-6)
    assert (renamed.layer, layout.layer, renamed.prompt) == (-6, -2, "a red fox")
    assert renamed.roles.equal(layout.roles)


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "roles, ids, grids, complaint",
    [
        ([T, T], [1], (), r"one equal length.*\(2,\) and \(1,\)"),
        ([[T, T]], [[1, 1]], (), "one equal length"),
        ([4], [1], (), r"roles 0 to 3, got \[4\]"),
        ([-1, 0], [1, 1], (), r"roles 0 to 3, got \[-1, 0\]"),
        (torch.tensor([256]), [1], (), r"roles 0 to 3, got \[256\]"),
        ([P, P], [1, 1], (), "hold 0 image tokens, roles count 2"),
        ([P, P], [1, 1], [(1, 3)], "hold 3 image tokens, roles count 2"),
        ([P, P], [1, 1], [(-1, -2)], "at least 1×1"),
        ([P, P], [1, 1], [(0, 7), (1, 2)], "at least 1×1"),
    ],
)
def test_contradictory_layouts_are_refused(roles, ids, grids, complaint):
    with pytest.raises(ValueError, match=complaint):
        TokenLayout(roles, ids, grids=grids)


def test_layouts_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout_of([T]).layer = -6


# --- rotary positions -----------------------------------------------------------------------------------------------


def test_words_count_up_alike_on_all_three_axes():
    assert mrope_positions(layout_of([T, W, W, T])).tolist() == [[0, 1, 2, 3]] * 3


def test_a_wide_picture_advances_by_its_columns():
    positions = mrope_positions(layout_of([T, M, *[P] * 6, M, W], grids=[(2, 3)]))
    assert positions.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_a_tall_picture_advances_by_its_rows():
    positions = mrope_positions(layout_of([M, P, P, P, M], grids=[(3, 1)]))
    assert positions.tolist() == [[0, 1, 1, 1, 4], [0, 1, 2, 3, 4], [0, 1, 1, 1, 4]]


def test_two_pictures_start_where_the_tokens_before_them_end():
    positions = mrope_positions(layout_of([M, P, P, M, M, *[P] * 4, M, W], grids=[(1, 2), (2, 2)]))
    assert positions.tolist() == [
        [0, 1, 1, 3, 4, 5, 5, 5, 5, 7, 8],
        [0, 1, 1, 3, 4, 5, 5, 6, 6, 7, 8],
        [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8],
    ]


def test_pictures_without_markers_between_them_keep_their_own_grids():
    positions = mrope_positions(layout_of([P, P, P, P, P], grids=[(2, 2), (1, 1)]))
    assert positions.tolist() == [[0, 0, 0, 0, 2], [0, 0, 1, 1, 2], [0, 1, 0, 1, 2]]


@pytest.mark.parametrize("grids", [[(2, 3)], [(3, 2)], [(1, 2), (2, 2)], [(4, 1), (1, 4), (2, 2)]])
def test_rotary_positions_are_those_of_transformers(grids):
    """The oracle is Qwen3VLModel.get_rope_index of transformers on the same ids."""
    pytest.importorskip("transformers", reason="the oracle is transformers' Qwen3-VL")
    expected = rope_index_of_transformers(insert_pictures(text_layout(RED_FOX_IDS), grids))
    assert mrope_positions(insert_pictures(text_layout(RED_FOX_IDS), grids)).equal(expected)


def rope_index_of_transformers(layout: TokenLayout) -> torch.Tensor:
    from inspect import signature

    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    with torch.device("meta"):
        text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1,
                "head_dim": 8, "intermediate_size": 8}
        vision = {"hidden_size": 8, "depth": 1, "num_heads": 1, "intermediate_size": 8, "out_hidden_size": 8,
                  "deepstack_visual_indexes": []}
        model = Qwen3VLModel(Qwen3VLConfig(text_config=text, vision_config=vision))
    ids = layout.token_ids[None]
    patches = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in layout.grids])
    arguments = {"input_ids": ids, "image_grid_thw": patches}
    if "mm_token_type_ids" in signature(model.get_rope_index).parameters:  # transformers 5
        arguments["mm_token_type_ids"] = (ids == PAD).int()
    return model.get_rope_index(**arguments)[0][:, 0].long()
