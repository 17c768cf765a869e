"""Whatever is hung on any module or put in its place, the fast path gives what the modules' own forward gives."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vl_core.encoder import reader as reader_module
from vl_core.encoder import room
from vl_core.encoder.cache import ByteCache
from vl_core.encoder.forward import fits
from vl_core.encoder.identity import WeightsIdentity
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.encoder.sight import modules_of

pytest.importorskip("transformers", minversion="4.57", reason="the encoder runs on transformers")
PROMPT = "a cat in a red hat"


@pytest.fixture
def pair(tiny_qwen3vl):
    """The fast encoder that keeps, and one that runs the modules' own forward and keeps nothing."""
    load = lambda **options: Qwen3VLEncoder.from_pretrained(tiny_qwen3vl[0], dtype=torch.float32, **options)  # noqa: E731
    return load(cache_bytes=1 << 30), load(fast=False)


@pytest.fixture(scope="module")
def picture(photographs):
    return photographs[0][:96, :130].float()[None] / 255


def states_of(encoder, picture):
    return encoder.encode([picture], PROMPT, -2).states


def agree(pair, picture) -> torch.Tensor:
    ours, theirs = (states_of(encoder, picture) for encoder in pair)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    return ours


def doubled(_module, _inputs, output):
    twice = lambda one: 2 * one if isinstance(one, torch.Tensor) else one  # noqa: E731
    return tuple(map(twice, output)) if isinstance(output, tuple) else twice(output)


def names_below(encoder) -> list[str]:
    """One module of each kind and place: of a list of blocks the first, whole towers left out."""
    names = {}
    for name, module in encoder.model.named_modules():
        place = ".".join("#" if part.isdigit() else part for part in name.split("."))
        if not isinstance(module, nn.ModuleList) and place not in ("", "visual", "language_model"):
            names.setdefault(place, name)
    return list(names.values())


def test_a_hook_on_any_module_is_honoured(pair, picture):
    before = agree(pair, picture)
    seen = 0
    for name in names_below(pair[0]):
        modules = [encoder.model.get_submodule(name) for encoder in pair]
        ran = []
        act = lambda *call, ran=ran: ran.append(0) or doubled(*call)  # noqa: E731
        handles = [module.register_forward_hook(act) for module in modules]
        assert not fits(pair[0].model.visual, pair[0].model.language_model), name
        ours = agree(pair, picture)
        for handle in handles:
            handle.remove()
        if ran:  # of a head's last layer and the like nothing is asked
            assert not torch.equal(ours, before), name
            seen += 1
        torch.testing.assert_close(states_of(pair[0], picture), before, rtol=1e-4, atol=1e-4)
    assert seen > 25


def test_a_hook_on_every_module_of_the_process_is_honoured(pair, picture):
    before = agree(pair, picture)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, _inputs, output: output + 1 if isinstance(module, nn.LayerNorm) else None
    )
    try:
        assert not torch.equal(agree(pair, picture), before)
    finally:
        handle.remove()


class Scaled(nn.Module):
    """A wrapper without tensors of its own."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, *arguments, **options):
        return self.inner(*arguments, **options) * self.factor


@pytest.mark.parametrize(
    "name",
    [
        "language_model.layers.1.mlp.down_proj", "language_model.layers.0.input_layernorm", "visual.blocks.0.norm1",
        "visual.merger.linear_fc2", "language_model.layers.1.mlp.act_fn",
    ],
)
def test_a_wrapper_without_new_tensors_and_its_scalar_are_noticed(pair, picture, name):
    before = agree(pair, picture)
    for encoder in pair:
        parent, _, child = name.rpartition(".")
        setattr(encoder.model.get_submodule(parent), child, Scaled(encoder.model.get_submodule(name), 1.5))
    wrapped = agree(pair, picture)
    assert not torch.equal(wrapped, before)
    for encoder in pair:
        encoder.model.get_submodule(name).factor = 0.5
    assert not torch.equal(agree(pair, picture), wrapped)


@pytest.mark.parametrize(
    "name, made",
    [
        ("language_model.layers.1.input_layernorm", lambda width: nn.LayerNorm(width)),
        ("language_model.layers.1.post_attention_layernorm", lambda width: nn.Identity()),
        ("visual.blocks.0.norm2", lambda width: nn.RMSNorm(width)),
        ("language_model.layers.0.mlp.act_fn", lambda width: nn.GELU()),
        ("visual.blocks.0.mlp.act_fn", lambda width: nn.SiLU()),
    ],
)
def test_another_kind_of_module_in_a_place_is_run_as_what_it_is(pair, picture, name, made):
    before = agree(pair, picture)
    for encoder in pair:
        parent, _, child = name.rpartition(".")
        old = encoder.model.get_submodule(name)
        width = old.weight.numel() if getattr(old, "weight", None) is not None else 0
        setattr(encoder.model.get_submodule(parent), child, made(width))
    assert not torch.equal(agree(pair, picture), before)


def test_a_changed_setting_of_a_module_is_noticed(pair, picture):
    before = agree(pair, picture)
    for encoder in pair:
        encoder.model.language_model.layers[0].input_layernorm.variance_epsilon = 10.0
    changed = agree(pair, picture)
    assert not torch.equal(changed, before)
    for encoder in pair:
        encoder.model.visual.blocks[0].norm1.eps = 10.0
    assert not torch.equal(agree(pair, picture), changed)


def test_a_parametrized_weight_is_run_as_what_it_is(pair, picture):
    class Negated(nn.Module):
        def forward(self, weight):
            return -weight

    before = agree(pair, picture)
    for encoder in pair:
        up = encoder.model.language_model.layers[0].mlp.up_proj
        nn.utils.parametrize.register_parametrization(up, "weight", Negated())
    assert not torch.equal(agree(pair, picture), before)


def test_what_cannot_be_seen_changing_is_read_anew_after_forget(pair, picture):
    before = agree(pair, picture)
    with torch.inference_mode():
        for encoder in pair:
            encoder.model.language_model.layers[0].mlp.up_proj.weight.mul_(2)
    pair[0].forget()
    assert not torch.equal(agree(pair, picture), before)


def test_the_identity_of_a_model_stays_while_nothing_changes(pair):
    model, identity = pair[0].model, WeightsIdentity()
    modules = modules_of(model)
    first = identity(model.parameters(), modules)
    assert identity(model.parameters(), modules_of(model)) == first
    model.language_model.layers[0].mlp.comfy_note = 3  # what a host notes down for itself
    assert identity(model.parameters(), modules_of(model)) == first
    model.visual.rotary_pos_emb.inv_freq.mul_(2)
    assert identity(model.parameters(), modules_of(model)) == first + 1


# Out of memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError()],
)
def test_memory_that_runs_out_for_good_is_an_error_that_says_what_to_change(pair, picture, monkeypatch, fast, error):
    encoder = pair[0] if fast else pair[1]
    tries = []

    def fail(*_arguments, **_options):
        tries.append(0)
        raise error

    if fast:
        states_of(encoder, picture)
        monkeypatch.setattr(reader_module, "run_blocks", fail)
    else:
        monkeypatch.setattr(encoder, "_run_blocks", fail)
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"image_tokens.*cache.*fp8"):
        encoder.encode([picture], "another prompt", -2)
    assert len(tries) == (2 if fast else 1)


def test_other_errors_pass_as_they_are():
    def fail():
        raise RuntimeError("shapes do not fit")

    cache = ByteCache(1024)
    cache.put("kept", 0, [torch.zeros(4)])
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        room.with_room(fail, cache, cache.clear)
    assert cache.bytes
