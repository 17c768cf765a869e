"""Memory over the weights while a 1024² picture is read for words, counted on tensors without data (torch's ``meta``).

At the size of Qwen3-VL-4B in bf16, with the kernels that run on a GPU. What libraries take for themselves is no part of
it: cuBLAS takes 32 MiB on an H100.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vl_core.encoder import kernels
from vl_core.encoder.asking import ask
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.encoder.writing import ROOM
from vl_core.zimage.tiny import build_tokenizer

from .common import Report, add_output_argument
from .models import PROMPT, build_config, picture

META, DTYPE = torch.device("meta"), torch.bfloat16
MIB = 1 << 20


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--size", choices=["tiny", "medium", "full"], default="full")
    parser.add_argument("--tokens", type=int, default=120, help="length of an answer")


def run(arguments) -> None:
    report = Report("memory", torch.device("cpu"), arguments.out, size=arguments.size, tokens=arguments.tokens)
    report.section("read for words", lambda: read_for_words(report, arguments.size, arguments.tokens))
    report.write()
    if report.failures:
        raise SystemExit(1)


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors without data that are alive, and the most that were at once."""

    def __init__(self, model: torch.nn.Module) -> None:
        """``model``: whose weights do not count."""
        super().__init__()
        weights = [one.untyped_storage() for one in (*model.parameters(), *model.buffers())]
        self._storages = {storage._cdata: (StorageWeakRef(storage), 0) for storage in weights}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        now, output = self.bytes(), function(*args, **(kwargs or {}))
        for one in tree_leaves(output):
            if isinstance(one, torch.Tensor) and one.device == META:
                storage = one.untyped_storage()
                if storage._cdata not in self._storages:
                    self._storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                    now += storage.nbytes()
        self.most = max(self.most, now)
        return output

    def bytes(self) -> int:
        self._storages = {key: one for key, one in self._storages.items() if not one[0].expired()}
        return sum(size for _, size in self._storages.values())


@contextmanager
def without_a_device():
    """Generators of the CPU in place of those that this device has none of."""
    make = torch.Generator
    with mock.patch.object(torch, "Generator", lambda *_: make()):
        yield


def read_for_words(report: Report, size: str, tokens: int) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    tokenizer = build_tokenizer()
    with META:
        model: Any = Qwen3VLForConditionalGeneration._from_config(
            build_config(size, tokenizer), attn_implementation="sdpa", dtype=DTYPE
        )
    model.eval().requires_grad_(False)
    encoder = Qwen3VLEncoder(model.model, tokenizer, model.config.text_config.num_hidden_layers, cache_bytes=1 << 30)
    asked, reader = ask(encoder, [picture(size)], PROMPT, max_tokens=tokens), encoder.reader
    sequence = asked.layout, asked.pictures
    on_a_gpu = mock.patch.object(reader, "_plain_kernels", lambda _: kernels.EXACT)
    with torch.inference_mode(), without_a_device(), on_a_gpu, Alive(model) as alive:
        key = reader.name_of(DTYPE, META)
        plan = reader.decoder.plan(None, DTYPE, META)
        assert plan is not None
        (features,) = reader.look([sequence], key, lambda: None)
        report.add("vision tower", MiB=alive.bytes() / MIB, most_MiB=alive.most / MIB)
        alive.most = 0
        room = -(-tokens // ROOM) * ROOM
        desk = reader.decoder.reserve(plan, 1, len(asked.layout) + tokens, room, DTYPE, META)
        report.add("what a step reads and writes", MiB=alive.bytes() / MIB, most_MiB=alive.most / MIB)
        alive.most = 0
        reader.open(*sequence, room, desk, 0, key, features=features)
        report.add("blocks", MiB=alive.bytes() / MIB, most_MiB=alive.most / MIB)
