"""Describe Picture with Qwen3-VL on both encoders: the same words, progress, Stop, and what is refused."""

from __future__ import annotations

import pytest
import torch

REQUEST = "describe the (light) of the \\(sea\\)"


@pytest.fixture(scope="module")
def writers(tiny, run, base_folder):
    """The same weights through both encoders."""
    clip = tiny.writing_clip()
    folder = tiny.write_folder(base_folder / "models" / "text_encoders" / "Qwen3-VL-Writer", clip)
    return {"native": clip, "transformers": run("Loader", folder.name, "fp32", deepest_layer=-1)[0]}


@pytest.fixture(params=["native", "transformers"])
def writer(request, writers):
    return writers[request.param]


@pytest.fixture(scope="module")
def write(part):
    """Words and all that is known of them."""
    words = part("nodes.host.encoders").write_words

    def run_it(encoder, images, instruction=REQUEST, max_tokens=16, **options):
        with torch.inference_mode():
            return words(encoder, {f"image{k}": one for k, one in enumerate(images)}, instruction,
                         max_tokens=max_tokens, **options)

    return run_it


def noise(seed: int, height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(seed))


# --- both encoders write the same ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [((64, 96),), ((250, 130),), ((64, 96), (71, 127))], ids=lambda s: " and ".join(f"{h}×{w}" for h, w in s)
)
def test_both_encoders_write_the_same_likeliest_words(sizes, writers, write):
    pictures = [noise(seed, *size) for seed, size in enumerate(sizes)]
    ours, theirs = (write(writers[name], pictures) for name in ("native", "transformers"))
    assert ours.raw and ours == theirs
    assert len(set(ours.raw)) > 12  # one word over and over would agree cheaply


def test_the_words_depend_on_the_picture_and_on_the_request(writer, write):
    same = write(writer, [noise(1)]).raw
    assert write(writer, [noise(1)]).raw == same
    assert write(writer, [noise(2)]).raw != same
    assert write(writer, [noise(1)], "what colours are there?").raw != same


def test_the_budget_of_tokens_reaches_both_encoders(writers, write):
    small = [write(writers[name], [noise(1, 256, 192)], budget=6) for name in ("native", "transformers")]
    assert small[0] == small[1] and any("6" in note or "scaled" in note for note in small[0].notes)


def test_a_seed_draws_the_same_words_again_and_another_seed_others(writer, write):
    def drawn(seed):
        return write(writer, [noise(1)], temperature=1.0, top_k=0, seed=seed).raw

    assert drawn(2**64 - 1) == drawn(2**64 - 1)
    assert len({drawn(seed) for seed in range(5)}) > 3


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.9, "top_k": 0, "min_p": 0.02, "seed": 4}, {"repetition_penalty": 0.05},
        {"temperature": 1.1, "top_k": 30, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 2**64 - 1},
        {"system_prompt": "Answer with (colours) \\(only\\)."},
    ],
    ids=str,
)
def test_both_encoders_choose_the_same_words(options, writers, write):
    ours, theirs = (write(writers[name], [noise(1)], **options) for name in ("native", "transformers"))
    assert ours == theirs and ours.raw != write(writers["native"], [noise(1)]).raw


def test_a_hooked_clip_writes_through_the_hosts_generate_and_says_so(writers, write):
    clip = writers["native"]
    told, seen = write(clip, [noise(1)]), []
    block = clip.cond_stage_model.qwen3vl_4b.transformer.model.layers[2]
    hook = block.mlp.register_forward_hook(lambda *_: seen.append(1))
    try:
        hooked = write(clip, [noise(1)])
    finally:
        hook.remove()
    assert seen and hooked.raw == told.raw and not any("generate" in note for note in told.notes)
    assert "ComfyUI's own generate" in hooked.notes[-1] and "hooked" in hooked.notes[-1]


def test_both_encoders_write_as_the_hosts_own_generate(writers, write, monkeypatch):
    ours = write(writers["native"], [noise(1), noise(2)])
    monkeypatch.setenv("ZIMAGE_VL_FAST", "0")
    assert write(writers["native"], [noise(1), noise(2)]).raw == ours.raw


def test_drawing_from_one_token_is_taking_the_likeliest(writer, write):
    assert write(writer, [noise(1)], temperature=1.0, top_k=1, seed=3).raw == write(writer, [noise(1)]).raw


def test_an_encode_gives_the_same_states_before_and_after_writing(writer, write, part):
    def states():
        with torch.inference_mode():
            return part("nodes.host.encoders").encode_vision(writer, {"image0": noise(1)}, "a cat", [-2])[0].states

    before = states()
    write(writer, [noise(2)])
    assert torch.equal(states(), before)


# --- progress and Stop ----------------------------------------------------------------------------------------------


@pytest.fixture
def hook(monkeypatch):
    """Puts a function where ComfyUI's main.py puts the one that shows progress and asks for Stop.

    A bar calls it at most every tenth of a second; here it calls it every time.
    """
    import comfy.utils

    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
    before = comfy.utils.PROGRESS_BAR_HOOK
    yield comfy.utils.set_progress_bar_global_hook
    comfy.utils.set_progress_bar_global_hook(before)


def test_progress_is_shown_token_by_token(writer, write, hook):
    seen = []
    hook(lambda value, total, *_, **__: seen.append((value, total)))
    found = write(writer, [noise(1)])
    assert seen[-1] == (found.tokens, 16)
    assert [value for value, _ in seen] == list(range(1, found.tokens + 1))


def test_stop_ends_the_writing_between_two_tokens(writer, write, hook):
    import comfy.model_management as management

    seen = []

    def asked(value, total, *_, **__):  # as the hook of main.py
        management.throw_exception_if_processing_interrupted()
        seen.append(value)
        if value == 3:
            management.interrupt_current_processing()

    hook(asked)
    with pytest.raises(management.InterruptProcessingException):
        write(writer, [noise(1)])
    assert seen == [1, 2, 3]
    hook(None)
    assert write(writer, [noise(1)]).raw


# --- Thinking models -------------------------------------------------------------------------------------------------

CLOSED = [151667, 271, 151668, 271]  # <think> \n\n </think> \n\n
TEMPLATE = "{{ messages[0].content }}{% if add_generation_prompt %}assistant\n<think>\n{% endif %}"


@pytest.fixture
def named(writers, monkeypatch):
    """The native encoder as Load CLIP gives it from a file of that name."""

    def load(name: str):
        clip = writers["native"]
        monkeypatch.setattr(clip.patcher, "cached_patcher_init", (None, ([f"/models/text_encoders/{name}"], None)))
        return clip

    return load


@pytest.fixture
def opened(part, monkeypatch):
    """Token ids of every sequence that words are written after."""
    found, reader = [], part("vl_core.encoder.reader").Reader
    read = reader.open

    def watch(self, layout, *arguments, **options):
        found.append(layout.token_ids.tolist())
        return read(self, layout, *arguments, **options)

    monkeypatch.setattr(reader, "open", watch)
    return found


def test_a_thinking_model_is_told_by_both_encoders_that_its_thought_is_over(
    tiny, writers, named, write, run, base_folder, opened
):
    folder = base_folder / "models" / "text_encoders" / "Qwen3-VL-Thinker"
    if not folder.is_dir():
        tiny.write_folder(folder, writers["native"])
        (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    loaded = run("Loader", folder.name, "fp32", deepest_layer=-1)[0]
    assert loaded.encoder.variant == "Thinking"
    ours, theirs = write(named("Qwen3-VL-4B-Thinking_fp8.safetensors"), [noise(1)]), write(loaded, [noise(1)])
    assert opened[0] == opened[1] and opened[0][-4:] == CLOSED
    assert ours == theirs and ours.raw
    plain = write(named("qwen3vl_4b_fp8_scaled.safetensors"), [noise(1)])
    assert opened[2] == opened[0][:-4] and plain.raw != ours.raw


def test_the_hosts_own_generate_is_asked_with_the_thought_closed_too(named, write, monkeypatch, opened):
    ours = write(named("qwen3-vl-thinking.safetensors"), [noise(1)])
    monkeypatch.setenv("ZIMAGE_VL_FAST", "0")
    assert write(named("qwen3-vl-thinking.safetensors"), [noise(1)]).raw == ours.raw
    assert len(opened) == 1


@pytest.mark.parametrize("raw", ["<think>\nthe user wants", "I look at it.\n</think>\n\nblue dusk"])
def test_a_model_that_only_its_answer_gives_away_is_asked_once_more(raw, named, write, opened, monkeypatch, part):
    module = part("nodes.host.native_words")
    expected = write(named("a-thinking-file.safetensors"), [noise(1)])
    clip, told = named("renamed.safetensors"), []
    decode = clip.decode
    opened.clear()
    monkeypatch.setattr(clip, "decode", lambda tokens: told.append(0) or (raw if len(told) == 1 else decode(tokens)))
    try:
        found = write(clip, [noise(1)])
        assert found.words == expected.words and "think" not in found.words
        assert any("Thinking model" in note for note in found.notes)
        assert [ids[-4:] == CLOSED for ids in opened] == [False, True]
        opened.clear()
        write(clip, [noise(2)])  # it is known from now on
        assert [ids[-4:] == CLOSED for ids in opened] == [True]
    finally:
        module._thinkers.discard(clip.cond_stage_model)


def test_thoughts_reach_no_prompt(named, run, picture, monkeypatch, part):
    clip, answers = named("renamed.safetensors"), iter(["<think>hm", "<think>\n\n</think>\n\nblue dusk, so"])
    monkeypatch.setattr(clip, "decode", lambda tokens: next(answers))
    try:
        (words,), (prompt,) = run("Describe", clip, images={"image0": picture}, prompt="a cat", max_tokens=4)[:2]
    finally:
        part("nodes.host.native_words")._thinkers.discard(clip.cond_stage_model)
    assert (words, prompt) == ("blue dusk", "a cat, blue dusk")


# --- out of memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["our step", "the host's generate"])
def test_memory_that_runs_out_while_words_are_written_says_what_to_change(way, writers, write, monkeypatch, part):
    clip = writers["native"]
    tries = []

    def fail(*_arguments, **_options):
        tries.append(0)
        raise torch.cuda.OutOfMemoryError("no room")

    write(clip, [noise(1)])  # something is kept
    if way == "our step":
        monkeypatch.setattr(part("vl_core.encoder.decoder").Decoder, "write", fail)
    else:
        monkeypatch.setenv("ZIMAGE_VL_FAST", "0")
        monkeypatch.setattr(clip, "generate", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"image_tokens.*cache.*fp8"):
        write(clip, [noise(1)])
    assert len(tries) == 2  # once more with nothing kept


# --- the node -------------------------------------------------------------------------------------------------------


def test_the_node_gives_the_words_and_shows_them(writer, run, told, picture):
    (words,), (prompt,) = run("Describe", writer, images={"image0": picture}, prompt="a cat. ", max_tokens=12)[:2]
    assert words and prompt.startswith("a cat, ")
    assert " ".join(words.split()).strip(" ,.;:") in prompt
    assert words in told(run("Describe", writer, images={"image0": picture}, max_tokens=12))


def test_the_choice_is_the_request_and_own_words_overrule_it(writer, run, part, picture, write):
    instructions = part("vl_core.encoder.writing").INSTRUCTIONS
    given = {"images": {"image0": picture}, "max_tokens": 12}
    for take in ("style hint", "slots"):
        assert run("Describe", writer, take, **given)[0] == [write(writer, [picture], instructions[take], 12).words]
    (own,) = run("Describe", writer, "slots", instruction=REQUEST, **given)[0]
    assert own == write(writer, [picture], REQUEST, 12).words


def test_without_a_prompt_the_second_output_is_the_words_alone(writer, run, picture):
    (words,), (alone,) = run("Describe", writer, images={"image0": picture}, max_tokens=12)[:2]
    assert alone == " ".join(words.split()).strip(" \t\r\n,.;:")


def test_an_answer_that_did_not_fit_says_so(writer, run, told, picture):
    output = run("Describe", writer, images={"image0": picture}, max_tokens=6)
    assert "ended at its limit after 6 tokens" in told(output)


def test_one_by_one_hands_out_a_text_for_every_picture(writer, run, told, write):
    pictures = [noise(1), noise(2)]
    shown = {"image0": torch.cat(pictures)}
    output = run("Describe", writer, images=shown, prompt="a cat", max_tokens=12, one_by_one=True)
    alone = [
        run("Describe", writer, images={"image0": one}, prompt="a cat", max_tokens=12)[:2] for one in pictures
    ]
    assert output[0] == [words for (words,), _ in alone] and output[1] == [prompt for _, (prompt,) in alone]
    assert output[0][0] != output[0][1] and f"2. {output[0][1]}" in told(output)
    together = run("Describe", writer, images=shown, prompt="a cat", max_tokens=12)[0]
    assert len(together) == 1 and together != output[0][:1]


def test_a_prompt_is_rewritten_with_the_picture_in_view(writer, run, write, part, picture):
    given = {"images": {"image0": picture}, "max_tokens": 12}
    request = part("vl_core.encoder.writing").rewrite_request("a cat in a hat")
    assert "a cat in a hat" in request
    words, prompts = run("Describe", writer, "rewrite the prompt", prompt="a cat in a hat", **given)[:2]
    assert words == prompts == [write(writer, [picture], request, 12).words]
    with pytest.raises(ValueError, match="prompt: expected words to rewrite"):
        run("Describe", writer, "rewrite the prompt", **given)


def test_settings_of_the_choice_reach_the_model(writer, run, write, picture, part):
    given = {"max_tokens": 12, "min_p": 0.02, "repetition_penalty": 1.3, "temperature": 1.0, "seed": 3, "top_k": 0}
    instruction = part("vl_core.encoder.writing").INSTRUCTIONS["look"]
    expected = write(writer, [picture], instruction, system_prompt="Answer in French.", **given).words
    found = run("Describe", writer, "look", images={"image0": picture}, system_prompt="Answer in French.", **given)[0]
    assert found == [expected]


# --- written once ---------------------------------------------------------------------------------------------------


@pytest.fixture
def loads(monkeypatch):
    """Every model that ComfyUI is asked to load."""
    import comfy.model_management as management

    asked, load = [], management.load_models_gpu
    monkeypatch.setattr(management, "load_models_gpu", lambda models, *a, **o: asked.extend(models) or load(
        models, *a, **o
    ))
    return asked


def test_the_same_words_are_not_written_twice_and_nothing_is_loaded_for_them(writer, run, told, picture, loads):
    def tell(**inputs):
        return run("Describe", writer, images={"image0": picture}, max_tokens=12, **inputs)

    first = tell()
    assert loads and "written before" not in told(first)
    loads.clear()
    again = tell(prompt="another prompt")
    assert again[0] == first[0] and not loads and "written before: the same words" in told(again)
    tell(take="look")
    assert loads


def test_a_prompt_on_kept_words_loads_no_qwen3_vl(writer, run, text_clip, picture, loads):
    def steer(prompt):
        return run("Condition", text_clip, writer, prompt, 1.0, "words", images={"image0": picture.flip(1)})

    first = steer("a cat")
    assert writer.patcher in loads
    loads.clear()
    again = steer("a dog on a hill")
    assert writer.patcher not in loads and text_clip.patcher in loads
    assert not torch.equal(first[0][0][0], again[0][0][0])


def test_words_outlive_comfyui_where_a_folder_is_named(writer, run, part, picture, loads, monkeypatch, tmp_path):
    monkeypatch.setenv("ZIMAGE_VL_WORDS", str(tmp_path / "words"))
    given = {"images": {"image0": picture}, "max_tokens": 12}
    first = run("Describe", writer, **given)[0]
    assert len(list((tmp_path / "words").glob("*.json"))) == 1
    part("nodes.host.encoders")._written.clear()  # as after a restart
    loads.clear()
    assert run("Describe", writer, **given)[0] == first and not loads


def test_what_one_encoder_wrote_is_not_another_s(writers, run, part, picture, loads):
    given = {"images": {"image0": picture}, "max_tokens": 12}
    for name, encoder in writers.items():
        loads.clear()
        run("Describe", encoder, **given)
        assert loads, name


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [None, {}, {"image0": None}])
def test_no_picture_is_refused(images, writer, run):
    with pytest.raises(ValueError, match="images: expected at least one picture"):
        run("Describe", writer, images=images)


def test_a_clip_that_cannot_see_is_refused(run, text_clip, picture):
    with pytest.raises(ValueError, match="cannot see pictures"):
        run("Describe", text_clip, images={"image0": picture})


def test_an_encoder_without_its_last_blocks_is_refused_and_told_the_mend(run, encoder_folder, picture):
    short = run("Loader", encoder_folder.name, "fp32", deepest_layer=-2)[0]
    with pytest.raises(ValueError, match="`deepest layer` -1"):
        run("Describe", short, images={"image0": picture})


def test_an_embedding_file_in_the_instruction_is_refused(writer, run, picture):
    with pytest.raises(ValueError, match="instruction: contains an embedding: file"):
        run("Describe", writer, images={"image0": picture}, instruction="embedding:face")


def test_qwen3_vl_8b_can_write_too(tiny, write):
    assert write(tiny.vision_clip(model_type="qwen3vl_8b", lm_head=False), [noise(1)]).tokens
