"""What words from a picture cost: our step beside transformers' ``generate``, and how often their tokens differ.

On a GPU at the size of Qwen3-VL-4B with random weights, on a CPU with the trained miniature. A token's time is the
slope between a short and a long answer, so reading the picture is no part of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from miniature import world
from vl_core.encoder import decoding
from vl_core.encoder.asking import ask, lengthen
from vl_core.encoder.cache import stored_bytes
from vl_core.encoder.decoder import Decoder
from vl_core.encoder.generate import generate, speaker_of
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.encoder.sampling import Sampling
from vl_core.encoder.writing import END_OF_TEXT, write_answers

from .common import Report, add_output_argument, in_turns, milliseconds, synchronize
from .models import OTHER_PROMPT, PROMPT, build_model, picture

MINIATURE = Path(__file__).parents[1] / "miniature" / "models" / "qwen3-vl-mini"
GIBIBYTE = 1 << 30
SHORT = 16
DRAWN = Sampling(0.7, 20, 0.8, 0.05, 1.05)  # every operation there is
TOGETHER = 8
PARTS = ("descriptions", "tokens", "together", "same_tokens", "compiled")


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=["miniature", "tiny", "medium", "full"], help="full on a GPU, else miniature")
    parser.add_argument("--runs", type=int, default=3, help="timed calls per figure")
    parser.add_argument("--tokens", type=int, default=120, help="length of an answer")
    parser.add_argument("--pictures", type=int, default=8, help="pictures whose tokens are compared")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="sections; all unless given")
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled step")


def run(arguments) -> None:
    bench = Words(arguments)
    for name in arguments.only or PARTS:
        if name != "compiled" or (bench.device.type == "cuda" and not arguments.no_compile):
            bench.report.section(name.replace("_", " "), getattr(bench, name))
    bench.report.write()


class Words:
    """One set of weights, encoders around it, and one method per section."""

    def __init__(self, arguments) -> None:
        self.device, self.runs, self.length = torch.device(arguments.device), arguments.runs, arguments.tokens
        self.pictures = arguments.pictures
        on_gpu = self.device.type == "cuda"
        self.size = arguments.size or ("full" if on_gpu else "miniature")
        self.dtype = torch.bfloat16 if on_gpu else torch.float32
        name = "words" if on_gpu else "words_cpu"
        self.report = Report(
            name, self.device, arguments.out, size=self.size, dtype=str(self.dtype), tokens=self.length
        )
        self.model, self.tokenizer = self._load(self.dtype)
        self.end = self.model.config.text_config.vocab_size - 1  # an end that is hardly ever written
        self.plain_ms: float | None = None
        self.floor_ms: float | None = None

    def _load(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """transformers' model without its head, and its tokenizer."""
        if self.size == "miniature":
            encoder = Qwen3VLEncoder.from_pretrained(MINIATURE, self.device, dtype)
            return encoder.model, encoder.tokenizer
        model, tokenizer = build_model(self.size, self.device, dtype)
        return model.model, tokenizer

    # Helpers --------------------------------------------------------------------------------------------------------

    def encoder(self, **options: Any) -> Qwen3VLEncoder:
        blocks = self.model.config.text_config.num_hidden_layers
        return Qwen3VLEncoder(self.model, self.tokenizer, blocks, **{"cache_bytes": GIBIBYTE, **options})

    def image(self, seed: int) -> torch.Tensor:
        return picture("tiny" if self.size == "miniature" else self.size, seed)

    def ours(
        self, encoder: Qwen3VLEncoder, images: list[torch.Tensor], tokens: int, request: str = PROMPT,
        sampling: Sampling | None = None, start: list[int] | None = None, ends: list[int] | None = None,
    ) -> list[list[int]]:
        """Tokens of each picture's words from an IMAGE on the CPU, all that is done for them included."""
        asked = [ask(encoder, [image], request, max_tokens=tokens) for image in images]
        sequences = [(lengthen(one.layout, start) if start else one.layout, one.pictures) for one in asked]
        answers, note = write_answers(
            encoder.reader, sequences, sampling or Sampling(), 0, tokens, ends or [self.end],
            lambda _row, _token: False, head=None, dtype=encoder.dtype, device=encoder.device,
        )
        if answers is None:
            raise RuntimeError(note)
        return answers

    def theirs(
        self, encoder: Qwen3VLEncoder, image: torch.Tensor, tokens: int, request: str = PROMPT,
        sampling: Sampling | None = None, ends: list[int] | None = None,
    ) -> list[int]:
        asked = ask(encoder, [image], request, max_tokens=tokens)
        return generate(encoder, asked.layout, asked.pictures, sampling or Sampling(), 0, tokens, ends or [self.end])

    def per_token(self, work: Callable[[int], Any]) -> float:
        """Milliseconds a token of ``work(tokens)``, without what comes before the first."""
        return self.per_tokens({"": work})[""]

    def per_tokens(self, works: dict[str, Callable[[int], Any]]) -> dict[str, float]:
        """The same of several, by turns: a machine that is busy is so for all of them."""
        lengths, turns = (SHORT, self.length), {}
        for name, work in works.items():
            work(SHORT)
            turns |= {(name, length): partial(work, length) for length in lengths}
        times = in_turns(turns, self.device, self.runs, 1)
        return {name: (times[name, self.length] - times[name, SHORT]) / (self.length - SHORT) for name in works}

    def once(self, work: Callable[[], Any]) -> float:
        return milliseconds(work, self.device, 1, 0)

    def add_token(self, what: str, ms: float) -> None:
        self.plain_ms = self.plain_ms or ms
        floor = {"× the floor": ms / self.floor_ms} if self.floor_ms else {}
        self.report.add(f"a token, {what}", ms=ms, **{"× faster than generate": self.plain_ms / ms}, **floor)

    # Sections -------------------------------------------------------------------------------------------------------

    def descriptions(self) -> None:
        encoder, numbers = self.encoder(), iter(range(10000))
        on_gpu, before = self.device.type == "cuda", 0
        if on_gpu:
            torch.cuda.empty_cache()
            before = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        images = {number: self.image(number) for number in range(2 + 4 * self.runs)}
        first = self.once(lambda: self.ours(encoder, [images[0]], self.length))
        memory = {"peak_MiB": (torch.cuda.max_memory_allocated(self.device) - before) / 2**20} if on_gpu else {}
        self.report.add(f"{self.length} tokens, the first after loading", ms=first, **memory)
        self._memory(encoder, before)
        del images[0]
        pictures = iter(images.values())

        def new() -> list[list[int]]:
            return self.ours(encoder, [next(pictures)], self.length)

        warm = milliseconds(new, self.device, self.runs, 1)
        another = milliseconds(
            lambda: self.ours(encoder, [images[1]], self.length, f"{OTHER_PROMPT}{next(numbers)}"), self.device,
            self.runs, 1,
        )
        encoded = []
        for _ in range(self.runs):
            image = next(pictures)
            encoder.encode([image], PROMPT, -6 if self.size != "tiny" else -2)
            encoded.append(self.once(lambda image=image: self.ours(encoder, [image], self.length)))
        plain = self.encoder(fast=False)
        stock = milliseconds(lambda: self.theirs(plain, next(pictures), self.length), self.device, self.runs, 1)
        for what, ms in (
            ("transformers' generate", stock), ("a new picture", warm),
            ("a picture read for an encode", sorted(encoded)[len(encoded) // 2]),
            ("a picture described for another take", another),
        ):
            self.report.add(f"{self.length} tokens, {what}", ms=ms, **{"× faster than generate": stock / ms})
        encoder.forget()

    def _memory(self, encoder: Qwen3VLEncoder, before: int) -> None:
        """What of the memory over the weights is whose, after a description."""
        desk = encoder.reader.decoder.desk
        assert desk is not None
        buffers = stored_bytes(desk.tensors())
        kept = encoder.reader.cache.bytes - buffers
        self.report.add("of it: the picture, kept for later", MiB=kept / 2**20)
        self.report.add("of it: what a step reads and writes", MiB=buffers / 2**20)
        if self.device.type == "cuda":
            rest = torch.cuda.memory_allocated(self.device) - before - kept - buffers
            self.report.add("of it: the graph, and what the libraries hold", MiB=rest / 2**20)

    def tokens(self) -> None:
        self._floor()
        image, plain, ours = self.image(0), self.encoder(), self.encoder()
        work = lambda count, **options: self.ours(ours, [image], count, **options)  # noqa: E731
        stock = lambda count: self.theirs(plain, image, count)  # noqa: E731
        if self.device.type != "cuda":
            drawn = partial(work, sampling=DRAWN)
            works = {"transformers' generate": stock, "our step": work, "our step, drawn": drawn}
            for what, ms in self.per_tokens(works).items():
                self.add_token(what, ms)
            return
        self.add_token("transformers' generate", self.per_token(stock))
        with uncaptured():
            self.add_token("our step, not captured", self.per_token(work))
        ours.forget()
        with masked():
            self.add_token("our step, captured, masked attention", self.per_token(work))
        ours.forget()
        self.add_token("our step, captured", self.per_token(work))
        self.report.add("attention reads the filled keys only", value=str(self._knows_filled()))
        self.report.add("not captured because", value=ours.reader.decoder.reason or "it is")
        self.add_token("our step, captured, drawn", self.per_token(lambda count: work(count, sampling=DRAWN)))
        ours.forget()

    def _knows_filled(self) -> bool:
        config = self.model.config.text_config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        return decoding.knows_filled(self.device, self.dtype, heads, groups, config.head_dim)

    def _floor(self) -> None:
        if self.device.type != "cuda":
            return
        language = self.model.language_model
        read = sum(weight.nbytes for weight in language.parameters())
        buffer = torch.empty(1 << 31, dtype=torch.uint8, device=self.device)
        # A sum only reads, as a product with one row does.
        seconds = milliseconds(lambda: buffer.view(torch.int64).sum(), self.device, 5) / 1000
        self.floor_ms = 1000 * read * seconds / (1 << 31)
        self.report.add("floor: the weights read once at the rate of a large sum", ms=self.floor_ms)

    def together(self) -> None:
        encoder = self.encoder(cache_bytes=0)
        images = [self.image(100 + number) for number in range(TOGETHER)]
        self.ours(encoder, images[:1], SHORT)
        apart = milliseconds(
            lambda: [self.ours(encoder, [one], self.length) for one in images], self.device, 1, 1
        )
        encoder.forget()
        self.ours(encoder, images, SHORT)
        ms = milliseconds(lambda: self.ours(encoder, images, self.length), self.device, self.runs, 1)
        self.report.add(f"{TOGETHER} pictures one by one", ms=apart)
        self.report.add(f"{TOGETHER} pictures together", ms=ms, **{"× faster than one by one": apart / ms})
        encoder.forget()

    def same_tokens(self) -> None:
        """Greedy tokens beside transformers' in bf16, and in float32 where that is cheap."""
        for dtype in [torch.bfloat16] if self.device.type == "cuda" else [torch.bfloat16, torch.float32]:
            if dtype != self.dtype or self.model.dtype != dtype:
                self.model, self.tokenizer = self._load(dtype)
            encoder, name = self.encoder(), str(dtype).removeprefix("torch.")
            if self.size == "miniature":
                ends = self.tokenizer.convert_tokens_to_ids(["<|im_end|>", END_OF_TEXT])
                asked = [(one, take) for one in world_pictures(self.pictures) for _, take, _ in world.TAKE_QUESTIONS]
                takes = f"{self.pictures} pictures × {len(world.TAKE_QUESTIONS)} takes, to the answer's end"
                self._count(encoder, f"{name}: {takes}", asked, ends)
            else:
                noise = [(self.image(200 + number), PROMPT) for number in range(self.pictures)]
                self._count(encoder, f"{name}: {self.pictures} answers, greedy", noise, [self.end])

    def _count(
        self, encoder: Qwen3VLEncoder, what: str, asked: list[tuple[torch.Tensor, str]], ends: list[int]
    ) -> None:
        compared = differ = answers = null = close = 0
        apart = [0.0]
        for image, request in asked:
            done, expected = 0, self.theirs(encoder, image, self.length, request, ends=ends)
            scores = self._scores(encoder, image, request, expected)
            null += sum(one != two for one, two in zip(scores.argmax(-1).tolist(), expected, strict=True))
            best, second = scores.topk(2).values.unbind(-1)
            close += int(((best - second) / rounding(best) <= 1).sum())
            answers += expected != self.ours(encoder, [image], self.length, request, ends=ends)[0]
            compared += len(expected)
            # After a difference we go on from their token, so that one does not count for all that follow.
            while done < len(expected):
                found = self.ours(
                    encoder, [image], len(expected) - done, request, start=expected[:done], ends=ends
                )[0]
                pairs = zip(found, expected[done:], strict=False)
                same = next((at for at, (one, two) in enumerate(pairs) if one != two), None)
                if same is None:
                    break
                done += same + 1
                differ += 1
                ours, theirs = scores[done - 1, found[same]], scores[done - 1, expected[done - 1]]
                apart.append(float((ours - theirs).abs() / rounding(torch.maximum(ours.abs(), theirs.abs()))))
        self.report.add(
            what, tokens=compared, **{
                "other than transformers'": differ, "answers that differ": answers,
                "largest gap of the two scores, in roundings": max(apart),
                "null: transformers' own in one pass, other than its own": null,
                "tokens whose two best scores are a rounding apart or less": close,
            },
        )

    def _scores(
        self, encoder: Qwen3VLEncoder, image: torch.Tensor, request: str, written: list[int]
    ) -> torch.Tensor:
        """transformers' scores ``(n, vocabulary)`` of the tokens it wrote, all in one pass."""
        asked = ask(encoder, [image], request)
        states: list[torch.Tensor] = []
        hook = encoder.model.register_forward_hook(lambda _module, _inputs, output: states.append(output[0][0]))
        try:
            generate(
                encoder, lengthen(asked.layout, written[:-1]), asked.pictures, Sampling(), 0, 1, [self.end]
            )
        finally:
            hook.remove()
        with torch.inference_mode():
            return speaker_of(encoder).lm_head(states[0][-len(written) :]).float()

    def compiled(self) -> None:
        encoder, image = self.encoder(compile=True), self.image(0)
        start = time.perf_counter()
        self.ours(encoder, [image], SHORT)
        synchronize(self.device)
        self.report.add("compiling, the first description", ms=1000 * (time.perf_counter() - start))
        self.add_token("our step, compiled and captured", self.per_token(lambda n: self.ours(encoder, [image], n)))
        encoder.forget()


def world_pictures(count: int) -> list[torch.Tensor]:
    """IMAGEs of the miniature's world, one or two shapes each."""
    scenes = world.sample_scenes(count, torch.Generator().manual_seed(3))
    rendered, _ = world.render(scenes, torch.Generator().manual_seed(4))
    return list(((rendered + 1) / 2).permute(0, 2, 3, 1).split(1))


def rounding(scores: torch.Tensor) -> torch.Tensor:
    """A step of bf16 at the size of each score."""
    return 2.0 ** (scores.abs().clamp(min=1e-30).log2().floor() - 7)


@contextmanager
def uncaptured() -> Iterator[None]:
    """No step is captured while this lasts."""
    with mock.patch.object(Decoder, "_graph", lambda *_: None):
        yield


@contextmanager
def masked() -> Iterator[None]:
    """Attention reads whole buffers, under a mask, while this lasts."""
    with mock.patch.object(decoding, "knows_filled", lambda *_: False), mock.patch(
        "vl_core.encoder.decoder.knows_filled", lambda *_: False
    ):
        yield
