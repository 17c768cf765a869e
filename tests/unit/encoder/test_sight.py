"""One look at a model says whether anything that hangs on it is another object, and holds none of its tensors."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vl_core.encoder import sight
from vl_core.encoder.identity import SourcesIdentity, WeightsIdentity
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.encoder.sight import Tree

PROMPT = "a cat in a red hat"


class Leaf(nn.Linear):
    def __init__(self) -> None:
        super().__init__(3, 3, bias=False)
        self.scale, self.notes = 0.1 + 0.2, ["a"]
        self.register_buffer("table", torch.zeros(2))


class Other(Leaf):
    pass


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(Leaf(), nn.Sequential(Leaf(), nn.SiLU()))


def of(sight):
    return sight.modules, list(map(id, sight.parameters)), list(map(id, sight.buffers))


def test_a_look_gives_what_hangs_there_and_the_same_version_while_it_does(model):
    tree = Tree(model[0], model[1])
    first, again, third = tree(), tree(), tree()
    assert first.modules == [model[0], model[1], model[1][0], model[1][1]]
    assert of(first) == of(again) == of(third)
    assert [*map(id, first.parameters)] == [id(model[0].weight), id(model[1][0].weight)]
    assert [*map(id, first.buffers)] == [id(model[0].table), id(model[1][0].table)]
    assert first.version == again.version == third.version
    model[0].scale = float(str(model[0].scale))  # an equal number is the same setting
    assert tree().version == first.version


CHANGES = {
    "a weight": lambda leaf: setattr(leaf, "weight", nn.Parameter(leaf.weight.detach())),
    "a weight's table": lambda leaf: leaf._parameters.update(weight=nn.Parameter(leaf.weight.detach().clone())),
    "no weight": lambda leaf: setattr(leaf, "weight", None),
    "one more weight": lambda leaf: setattr(leaf, "bias", nn.Parameter(torch.zeros(3))),
    "a buffer": lambda leaf: setattr(leaf, "table", torch.zeros(2)),
    "a setting": lambda leaf: setattr(leaf, "scale", 0.5),
    "a list": lambda leaf: setattr(leaf, "notes", ["b"]),
    "one more attribute": lambda leaf: setattr(leaf, "more", 1),
    "no attribute": lambda leaf: delattr(leaf, "scale"),
    "forward": lambda leaf: setattr(leaf, "forward", torch.sin),
    "a class": lambda leaf: setattr(leaf, "__class__", Other),
    "a dict": lambda leaf: setattr(leaf, "__dict__", {**leaf.__dict__, "scale": 2.0}),
    "a hook": lambda leaf: leaf.register_forward_hook(lambda *_: None),
    "a hook before": lambda leaf: leaf.register_forward_pre_hook(lambda *_: None),
    "a child": lambda leaf: setattr(leaf, "child", nn.SiLU()),
    "a tensor for a number": lambda leaf: setattr(leaf, "scale", torch.zeros(3)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_whatever_is_put_in_a_things_place_is_another_version(model, change):
    tree = Tree(model)
    before = [tree().version, tree().version]
    change(model[1][0])
    after = [tree().version, tree().version]
    assert before[0] == before[1] != after[0] == after[1]
    assert of(tree()) == of(Tree(model)())


def test_children_in_another_place_or_by_another_name_are_another_version(model):
    tree, versions = Tree(model), []
    versions.append(tree().version)
    model[0], model[1] = model[1], model[0]
    versions.append(tree().version)
    model._modules["third"] = model._modules.pop("1")
    versions.append(tree().version)
    assert len(set(versions)) == 3
    assert tree().modules == [model, model[0], model.third, model[0][0], model[0][1]]


def test_a_table_that_is_only_equal_is_looked_into_from_then_on(model):
    tree = Tree(model)
    first = tree().version
    model[0].__dict__["_parameters"] = dict(model[0]._parameters)
    tree()
    model[0].weight = nn.Parameter(torch.zeros(3, 3))
    assert tree().version > first and tree().parameters[0] is model[0].weight


def test_a_hook_that_came_and_went_leaves_the_modules_as_they_were(model):
    tree = Tree(model)
    tree()
    model[0].register_forward_hook(lambda *_: None).remove()
    version = tree().version
    assert tree().version == version and not any(map(len, (model[0]._forward_hooks, model[0]._forward_pre_hooks)))


def test_replaced_weights_are_not_held_and_one_at_the_same_place_is_another(model):
    tree, identity = Tree(model), WeightsIdentity()
    numbers = [identity.of(tree()), identity.of(tree())]
    assert numbers[0] == numbers[1]
    for step in range(20):
        old = weakref.ref(model[0].weight)
        value = model[0].weight.detach().clone()
        model[0].weight = None
        gc.collect(0)
        assert old() is None, "somebody holds the old weights"
        model[0].weight = nn.Parameter(value)  # often where the old one lay
        assert identity.of(tree()) == numbers[0] + 1 + step


@pytest.mark.parametrize("listed", [True, False])
def test_the_number_follows_what_was_done_whether_or_not_the_collector_lists_all(model, monkeypatch, listed):
    if not listed:
        monkeypatch.setattr(sight, "gc", SimpleNamespace(get_referents=lambda *parts: list(parts)[:3]))
    tree, identity = Tree(model), WeightsIdentity()
    first = identity.of(tree())
    assert identity.of(tree()) == first
    model[0].comfy_note = 3  # what a host notes down for itself
    assert identity.of(tree()) == first == identity.of(tree())
    with torch.no_grad():
        model[0].weight[0, 0] = 7
    assert identity.of(tree()) == first + 1 == identity.of(tree())
    model[0].table.add_(1)
    assert identity.of(tree()) == first + 2 == identity.of(tree())
    model[1][0].scale = 5.0
    assert identity.of(tree()) == first + 3 == identity.of(tree())
    model[1][0].weight.data = model[1][0].weight.detach().clone()
    assert identity.of(tree()) == first + 4 == identity.of(tree())


def test_weights_that_stand_for_the_parameters_are_told_apart_as_these_are(model):
    tree, identity = Tree(model), WeightsIdentity()
    stand = [torch.zeros(2), torch.ones(3)]
    first = identity.of(tree(), stand)
    assert identity.of(tree(), list(stand)) == first
    model[0].weight = nn.Parameter(torch.zeros(3, 3))  # a copy that a host made for this load
    assert identity.of(tree(), stand) == first == identity.of(tree(), stand)
    stand[0].add_(1)
    assert identity.of(tree(), stand) == first + 1 == identity.of(tree(), stand)
    assert identity.of(tree(), [stand[0], torch.ones(3)]) == first + 2
    assert identity.of(tree()) == first + 3 == identity.of(tree())


def test_sources_that_hang_up_in_other_objects_are_the_same_as_long_as_their_storage(model):
    """What ComfyUI's dynamic memory does at each load: it wraps what it had put aside in new parameters."""
    modules, identity = [model, *model], SourcesIdentity()

    def number():
        return identity(weights, modules)

    weights = [nn.Parameter(torch.ones(4), requires_grad=False), torch.zeros(3)]
    first = number()
    weights = [nn.Parameter(weights[0], requires_grad=False), weights[1].view(3)]
    assert number() == first == number()
    weights[0].add_(1)
    assert number() == first + 1 == number()
    model[0].scale = 0.7
    assert number() == first + 2 == number()
    model[0]._v_signature = model[0].comfy_cast_weights = True  # what the host notes down
    assert number() == first + 2
    address = weights[1].data_ptr()
    weights[1] = None
    others = [torch.zeros(3) for _ in range(64)]  # one of which lies where that was
    weights[1] = min(others, key=lambda one: one.data_ptr() != address)
    assert number() == first + 3 == number()


def test_reading_touches_nothing_so_that_one_look_is_enough(tiny_qwen3vl, photographs):
    pytest.importorskip("transformers", minversion="4.57", reason="the encoder runs on transformers")
    encoder = Qwen3VLEncoder.from_pretrained(tiny_qwen3vl[0], dtype=torch.float32)
    picture, watched = photographs[0][:64, :96], encoder.reader.watched
    number, before = watched.look(), watched._tree().version
    assert number == watched.number() and watched.fit()
    for prompt in (PROMPT, PROMPT, "another"):
        encoder.encode([picture], prompt, -2)
    assert (watched.look(), watched._tree().version) == (number, before)
    hook = encoder.model.visual.register_forward_hook(lambda *_: None)
    assert watched.look() is None and not watched.fit()
    hook.remove()
    assert watched.look() == number and watched.fit()
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert watched.look() is None
    everywhere.remove()
    assert watched.look() == number
