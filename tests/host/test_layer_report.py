"""Layer Report and the plots of Inspect on tiny models, through either encoder."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch

PROMPT = "a cat in a red hat"
BLOCKS = 6


@pytest.fixture(scope="module")
def text(core_text):
    return core_text(PROMPT)


@pytest.fixture(scope="module")
def seen(run, native, picture):
    return run("Encode", native, PROMPT, layer=-2, images={"image0": picture})[0]


def rows_of(output) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(output[2])))


def layers_of(output) -> list[int]:
    return sorted({int(row["layer"]) for row in rows_of(output)})


# --- Layer Report -----------------------------------------------------------------------------------------------------


def test_every_layer_is_reported_as_picture_table_and_csv(run, vision, picture, reference, text, told):
    output = run("LayerReport", vision, PROMPT, images={"image0": picture}, reference=reference, text=text)
    plots, report = output[0], output[1]
    assert plots.ndim == 4 and plots.shape[0] == 1 and plots.shape[-1] == 3 and plots.dtype == torch.float32
    assert plots.min() >= 0 and plots.max() <= 1 and plots.std() > 0.01
    assert layers_of(output) == list(range(-BLOCKS - 1, 0))
    assert {(row["group"], row["space"], row["sinks"]) for row in rows_of(output)} == {
        (group, space, sinks)
        for group in ("text", "image") for space in ("raw", "dit") for sinks in ("include", "exclude")
    }
    assert {row["tokens"] for row in rows_of(output) if row["group"] == "image"} == {"6"}
    assert all(row["cka"] and row["cosine"] for row in rows_of(output) if row["group"] == "text")
    assert "image tokens, after x/rms(x)" in report and "*" in report
    assert told(output).startswith("Layer") and "the most like the text encoder" in told(output).splitlines()[0]
    assert "Best layer by metric" in told(output) and "text tokens: mean r" in told(output)
    assert len(output.ui["images"]) == 1


def test_both_encoders_give_one_report(run, native, loaded, picture, reference, text):
    ours, theirs = (
        rows_of(run("LayerReport", encoder, PROMPT, images={"image0": picture}, reference=reference, text=text))
        for encoder in (native, loaded)
    )
    numbers = ("mean_correlation", "log_std_correlation", "std_ratio", "effective_rank", "frechet", "cka", "cosine")
    for a, b in zip(ours, theirs, strict=True):
        if a["group"] == "image" and int(a["layer"]) in range(-BLOCKS, -BLOCKS + 3):
            continue  # deepstack features: in the host's states they are added already
        for name in numbers:
            assert (a[name] == "") == (b[name] == "")
            if a[name]:
                assert float(a[name]) == pytest.approx(float(b[name]), rel=5e-3, abs=5e-3), (a["layer"], name)


def test_the_figures_are_those_of_the_states_that_encode_gives(run, part, vision, picture, reference):
    output = run("LayerReport", vision, PROMPT, "-3", images={"image0": picture}, reference=reference)
    (entry,) = run("Encode", vision, PROMPT, layer=-3, tokens="image_no_markers", images={"image0": picture})[0]
    found = part("vl_core.reports.inspection").inspect(entry[0], entry[1]["vl_layout"], reference)
    wanted = {"group": "image", "space": "raw", "sinks": "exclude"}
    (row,) = [row for row in rows_of(output) if wanted.items() <= row.items()]
    assert float(row["mean_correlation"]) == pytest.approx(found.mean_correlation, abs=1e-5)
    assert float(row["log_std_correlation"]) == pytest.approx(found.log_std_correlation, abs=1e-5)


def test_all_layers_come_from_one_forward(run, native, picture, monkeypatch):
    model, forwards = native.cond_stage_model.qwen3vl_4b.transformer.model, []
    listening = model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        run("LayerReport", native, PROMPT, images={"image0": picture})
    finally:
        listening.remove()
    assert len(forwards) == 1


def test_chosen_layers_are_the_ones_reported(run, vision):
    assert layers_of(run("LayerReport", vision, PROMPT, "-1, -2:-6:-2")) == [-6, -4, -2, -1]


def test_all_means_the_layers_that_are_loaded(run, encoder_folder):
    shallow = run("Loader", encoder_folder.name, "fp32", deepest_layer=-3)[0]
    assert layers_of(run("LayerReport", shallow, PROMPT)) == [-7, -6, -5, -4, -3]
    with pytest.raises(ValueError, match=r"layers: -1 was not loaded, the deepest layer .* is -3"):
        run("LayerReport", shallow, PROMPT, "-1")


def test_without_picture_reference_and_text_the_words_ranks_are_told(run, vision, told):
    output = run("LayerReport", vision, PROMPT)
    assert {row["group"] for row in rows_of(output)} == {"text"}
    assert "only the effective rank" in told(output)
    assert all(row["effective_rank"] and not row["frechet"] for row in rows_of(output))


def test_our_own_text_encoding_pairs_by_token(run, part, vision, text_clip, text):
    with torch.inference_mode():
        own = part("nodes.host.text_encoder").encode_text(text_clip, PROMPT)
    assert own[0][1]["vl_layout"] is not None
    ours, theirs = (rows_of(run("LayerReport", vision, PROMPT, "-2", text=one)) for one in (own, text))
    assert ours == theirs


@pytest.mark.parametrize(
    ("layers", "message"),
    [("-8", "the model has 6 blocks"), ("", "layers: expected at least one layer"), ("-1*2", "got '-1\\*2'")],
)
def test_layers_that_do_not_exist_are_refused(layers, message, run, vision):
    with pytest.raises(ValueError, match=message):
        run("LayerReport", vision, PROMPT, layers)


def test_text_of_other_words_and_several_prompts_are_refused(run, vision, core_text, text):
    with pytest.raises(ValueError, match="Use the same prompt for both"):
        run("LayerReport", vision, PROMPT, text=core_text("quite another and much longer prompt than that one"))
    with pytest.raises(ValueError, match="text: expected one prompt, got 2 sequences in 2 entries"):
        run("LayerReport", vision, PROMPT, text=text + text)
    with pytest.raises(ValueError, match="text: expected at least one entry"):
        run("LayerReport", vision, PROMPT, text=[])


def test_other_encoders_and_references_of_other_layers_are_refused(run, vision, text_clip, reference):
    from dataclasses import replace

    with pytest.raises(ValueError, match="got the text-only Qwen3-4B"):
        run("LayerReport", text_clip, PROMPT)
    with pytest.raises(ValueError, match="expected a Qwen3-VL encoder"):
        run("LayerReport", object(), PROMPT)
    with pytest.raises(ValueError, match="expected statistics of layer -2"):
        run("LayerReport", vision, PROMPT, reference=replace(reference, layer=-6))


def test_stopping_ends_a_report(run, native, picture, part, monkeypatch):
    import comfy.model_management as management

    def stop(total):
        def step():
            raise management.InterruptProcessingException

        return step

    monkeypatch.setattr(part("nodes.host.memory"), "progress_bar", stop)
    with pytest.raises(management.InterruptProcessingException):
        run("LayerReport", native, PROMPT, images={"image0": picture})


# --- Inspect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_inspect_draws_all_plots_in_either_theme(theme, run, seen, reference):
    overview = run("Inspect", seen, reference, plots="overview", theme=theme)
    full = run("Inspect", seen, reference, plots="all", theme=theme)
    assert full[0].shape[1] > 2 * overview[0].shape[1] and full[0].shape[2] == overview[0].shape[2]
    assert full[1] == overview[1]
    assert bool(full[0].mean() > 0.5) == bool(overview[0].mean() > 0.5) == (theme == "light")


def test_inspect_draws_one_plot_in_the_colours_of_comfyuis_theme_unless_told_otherwise(run, seen, reference, part):
    folders = part("nodes.host.folders")
    settings = Path(folders.folder_paths.get_user_directory()) / "default" / "comfy.settings.json"
    one = {theme: run("Inspect", seen, reference, 10.0, "token sizes", theme)[0] for theme in ("light", "dark")}
    assert torch.equal(run("Inspect", seen, reference)[0], one["dark"])  # ComfyUI's own theme
    settings.parent.mkdir(parents=True, exist_ok=True)
    palettes = {"arc": {"light_theme": False}, "paper": {"light_theme": True}}
    try:
        themes = {"light": "light", "nord": "dark", "custom_paper": "light", "custom_arc": "dark"}
        for chosen, expected in themes.items():
            said = {"Comfy.ColorPalette": chosen, "Comfy.CustomColorPalettes": palettes}
            settings.write_text(json.dumps(said), encoding="utf-8")
            assert torch.equal(run("Inspect", seen, reference)[0], one[expected]), chosen
        settings.write_text("no JSON", encoding="utf-8")
        assert torch.equal(run("Inspect", seen, reference)[0], one["dark"])
    finally:
        settings.unlink()


def test_one_measure_is_drawn_large_and_all_of_them_where_it_was_not_measured(run, vision, picture, text):
    def plots(**given):
        return run("LayerReport", vision, PROMPT, "-1, -2", images={"image0": picture}, **given)[0]

    one, every = plots(text=text), plots(text=text, plot="all")
    assert one.shape[1] < every.shape[1]
    assert torch.equal(plots(plot="Mean cosine with the text"), plots(plot="all"))  # no text to compare with


def test_inspect_shows_entries_whose_figures_differ_in_size(run, seen, reference):
    lonely = [[seen[0][0][:, 1:2], {}]]
    output = run("Inspect", seen + lonely, reference)
    assert output[0].shape[0] == 2 and output[0].isfinite().all()
