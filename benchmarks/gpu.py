"""What an encode costs on a GPU and where the time goes: Qwen3-VL-4B from its config, random bf16 weights.

The note's way is the full transformers forward with all hidden states and logits; every ratio is within one run.
"""

from __future__ import annotations

from typing import Any

import torch

from vl_core.encoder.cache import ByteCache
from vl_core.encoder.forward import mrope_rotary, picture_spans, run_blocks
from vl_core.encoder.graphs import GraphPool
from vl_core.encoder.kernels import quick_attention
from vl_core.encoder.qwen3vl import Qwen3VLEncoder
from vl_core.encoder.reader import Reader
from vl_core.encoder.vision import run_vision
from vl_core.pictures import MERGE, Picture, patchify, prepare_picture
from vl_core.states.layout import insert_pictures, mrope_positions
from vl_core.states.statistics import calibrate, calibration_prompts
from vl_core.zimage.text import batch_reader, text_reader

from . import stages
from .common import Report, add_output_argument, in_turns, milliseconds, peak_mib, relative_error, worst_token_error
from .models import OTHER_PROMPT, PROMPT, build_model, picture

LAYER = -6
GIBIBYTE = 1 << 30


def add_arguments(parser) -> None:
    add_output_argument(parser)
    parser.add_argument("--size", default="full", choices=["tiny", "medium", "full"])
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--runs", type=int, default=10, help="timed calls per figure")


def run(arguments) -> None:
    bench = Bench(arguments)
    for title, part in (
        ("first encode", bench.first_encode), ("vision tower", bench.vision),
        ("language blocks", bench.blocks), ("whole calls", bench.whole_calls), ("again", bench.again),
        ("calibration", bench.calibration), ("stages", bench.stages),
        ("launches", bench.launches),
        ("accuracy", bench.accuracy),
    ):
        bench.report.section(title, part)
    bench.report.write()


class Bench:
    """The model, its inputs on the device, and one method per section."""

    def __init__(self, arguments) -> None:
        self.device, self.runs, self.size = torch.device(arguments.device), arguments.runs, arguments.size
        on_gpu = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if on_gpu else torch.float32
        self.report = Report("gpu", self.device, arguments.out, size=arguments.size, dtype=str(self.dtype))
        self.model, self.tokenizer = build_model(arguments.size, self.device, self.dtype)
        self.image = picture(arguments.size)
        self.num_layers = self.model.config.text_config.num_hidden_layers
        self.plain, self.encoder = self.another(cache_bytes=0, fast=False), self.another(cache_bytes=0)
        prepared = prepare_picture(self.image)[0]
        self.picture = Picture(prepared.pixels.to(self.device))
        self.layout = insert_pictures(self.encoder.tokenize(PROMPT), [prepared.grid], self.encoder.special)
        self.wanted = (LAYER % (self.num_layers + 1),)
        self.note_ms: float | None = None
        self.floor_ms: float | None = None

    # Helpers --------------------------------------------------------------------------------------------------------

    def another(self, **options: Any) -> Qwen3VLEncoder:
        return Qwen3VLEncoder(self.model.model, self.tokenizer, self.num_layers, **options)

    def time(self, work) -> float:
        with torch.inference_mode():
            return milliseconds(work, self.device, self.runs)

    def memory(self, work) -> float | None:
        with torch.inference_mode():
            return peak_mib(work, self.device)

    def add(self, what: str, ms: float, **values: Any) -> None:
        floor = {"× the floor": ms / self.floor_ms} if self.floor_ms and "layer" in what else {}
        ratio = {"× faster than the note's way": self.note_ms / ms} if self.note_ms else {}
        self.report.add(what, ms=ms, **floor, **ratio, **values)

    def reader(self, graphs: bool = False, cache: int = 0, **options) -> Reader:
        return Reader(
            self.model.model.visual, self.model.model.language_model, self.num_layers, self.encoder._rotary,
            ByteCache(cache), graphs=GraphPool() if graphs else None, **{"exact": True, **options},
        )

    def read(self, reader: Reader, layout=None, pictures=None, wanted=None) -> list[torch.Tensor]:
        return reader.read(
            layout or self.layout, pictures or [self.picture], wanted or self.wanted, dtype=self.dtype,
            device=self.device,
        )

    def note(self, model=None, dtype=None) -> torch.Tensor:
        """The note's way, from pixel values and ids that are on the device already."""
        ids = self.layout.token_ids.to(self.device)[None]
        values, grid = patchify(self.picture)
        output = (model or self.model)(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=values.to(dtype or self.dtype),
            image_grid_thw=grid.to(self.device), output_hidden_states=True, use_cache=False,
            mm_token_type_ids=(ids == self.encoder.special.image_pad).int(),
        )
        return output.hidden_states[LAYER][0]

    # Sections -------------------------------------------------------------------------------------------------------

    def _floor(self) -> None:
        """The products of vision tower and blocks at the rate of one large product, attention left out."""
        if self.device.type != "cuda":
            return
        one = torch.randn(8192, 8192, device=self.device, dtype=self.dtype)
        rate = 2 * 8192**3 / self.time(lambda: one @ one)
        count, visual = self.wanted[-1], self.model.model.visual
        blocks = 2 * len(self.layout) * _numbers(*self.model.model.language_model.layers[:count])
        patches = self.picture.tokens * MERGE**2
        mergers = _numbers(visual.merger, *visual.deepstack_merger_list)
        vision = 2 * (patches * _numbers(visual.patch_embed, *visual.blocks) + self.picture.tokens * mergers)
        self.floor_ms = (blocks + vision) / rate
        self.report.add(f"floor: vision tower and {count} blocks at the rate of one product of 8192³", ms=self.floor_ms)
        self.report.add(f"floor: {count} blocks", ms=blocks / rate)

    def first_encode(self) -> None:
        eager, kept, graphs = self.reader(), self.reader(cache=GIBIBYTE), self.reader(graphs=True)
        merged = self.reader(exact=False)

        def first() -> list[torch.Tensor]:
            kept.forget()
            return self.read(kept)

        works = {
            "the note's way": self.note,
            "the modules' own forward": lambda: self.plain._read(
                self.layout, [self.picture], False, self.wanted, lambda: None
            )[0],
            "eager": lambda: self.read(eager)[0],
            "eager, kept for later": lambda: first()[0],
            "eager, merged kernels": lambda: self.read(merged)[0],
            "compiled kernels in captured graphs": lambda: self.read(graphs)[0],
        }
        self._floor()
        with torch.inference_mode():
            times = in_turns(works, self.device, 3 * self.runs)
            with quick_attention(self.device):  # as ours; cuDNN's rounds otherwise
                expected = self.note().clone()
            for name, work in works.items():
                self.note_ms = self.note_ms or times[name]
                states = work().clone()
                self.add(
                    f"{name}, layer {LAYER}", times[name], peak_MiB=peak_mib(work, self.device),
                    error=relative_error(states, expected), worst_token=worst_token_error(states, expected),
                )
        self.report.add("kept for later", MiB=kept.cache.bytes / 2**20)
        self.report.add("graphs were captured", graphs=str(graphs._graphs.works))
        if self.device.type == "cuda":
            free = torch.cuda.memory_reserved(self.device)
            graphs.forget()
            torch.cuda.empty_cache()
            self.report.add("memory the graphs hold", MiB=(free - torch.cuda.memory_reserved(self.device)) / 2**20)

    def vision(self) -> None:
        visual, (patches, grid) = self.model.model.visual, patchify(self.picture)
        patches = patches.to(self.dtype)
        self.add("vision tower, transformers", self.time(lambda: visual(patches, grid_thw=grid.to(self.device))))
        tables = self.reader().tables(self.picture.grid, self.device)
        self.add("vision tower, merged kernels", self.time(lambda: run_vision(visual, patches[None], tables)))
        reader = self.reader(graphs=True)
        self.add("vision tower, captured graph", self.time(
            lambda: reader._vision(self.picture, self.dtype, self.device, lambda: None)
        ))
        self.add("picture on the device -> patches", self.time(lambda: patchify(self.picture)[0].to(self.dtype)))
        self.add("tables of a grid", self.time(lambda: self.reader().tables(self.picture.grid, self.device)))

    def blocks(self) -> None:
        language = self.model.model.language_model
        width = self.model.config.text_config.hidden_size
        hidden = torch.randn(len(self.layout), width, device=self.device, dtype=self.dtype)
        rotary = self.encoder._rotary(self.layout, 0)
        spans = picture_spans(self.layout)
        deepstack = [torch.zeros(spans[0][1] - spans[0][0], width, device=self.device, dtype=self.dtype)] * 3
        count = self.wanted[-1]
        self.add(f"{count} blocks, merged kernels", self.time(lambda: run_blocks(
            language, hidden.clone(), rotary, self.wanted, self.num_layers, spans=spans, deepstack=deepstack
        )))
        reader = self.reader(graphs=True)
        self.add(f"{count} blocks, captured graph", self.time(lambda: reader._all_blocks(
            hidden.clone(), self.layout, self.wanted, spans, deepstack, False, lambda: None
        )))
        self.add("rotary tables", self.time(lambda: self.encoder._rotary(self.layout, 0)))

    def whole_calls(self) -> None:
        """From an IMAGE on the CPU to states, everything included."""
        def processed() -> torch.Tensor:
            values, _ = patchify(prepare_picture(self.image)[0])
            values.to(self.device)
            return self.note()

        self.report.add("the note's way from an IMAGE on the CPU", ms=self.time(processed))
        new = iter([picture(self.size, 1000 + number) for number in range(self.runs + 2)])
        self.report.add("preparing a new picture alone", ms=self.time(lambda: prepare_picture(next(new))))
        new = iter([prepare_picture(picture(self.size, 2000 + number))[0] for number in range(self.runs + 2)])
        self.report.add("hashing a new picture alone", ms=self.time(lambda: next(new).digest))
        self.report.add("preparing and hashing it again", ms=self.time(lambda: prepare_picture(self.image)[0].digest))
        for name, options in (
            ("eager", {"cache_bytes": 0}), ("captured graphs", {"cache_bytes": 0, "compile": True}),
        ):
            encoder = self.another(**options)
            work = lambda encoder=encoder: encoder.encode([self.image], PROMPT, LAYER)  # noqa: E731
            self.report.add(f"encode() from an IMAGE on the CPU, {name}", ms=self.time(work))
            encoder.forget()

    def again(self) -> None:
        fresh, encoder = self.another(cache_bytes=0), self.another(cache_bytes=GIBIBYTE)
        every_layer = self.another(cache_bytes=GIBIBYTE, every_layer=True)
        prompts = iter(f"{OTHER_PROMPT} {number}" for number in range(10000))
        works = {
            "new prompt, nothing kept": lambda: fresh.encode([self.image], next(prompts), LAYER),
            "same picture, new prompt": lambda: encoder.encode([self.image], next(prompts), LAYER),
            "the same again": lambda: encoder.encode([self.image], PROMPT, LAYER),
            "another layer, every layer kept": lambda: every_layer.encode([self.image], PROMPT, LAYER - 2),
        }
        with torch.inference_mode():
            times = in_turns(works, self.device, 3 * self.runs)
        whole = times["new prompt, nothing kept"]
        for what, ms in times.items():
            self.report.add(f"encode(), {what}", ms=ms, **{"× faster than nothing kept": whole / ms})
        ours = encoder.encode([self.image], OTHER_PROMPT, LAYER).states[0]
        theirs = fresh.encode([self.image], OTHER_PROMPT, LAYER).states[0]
        self.report.add("new prompt on a kept picture against a whole encode", error=relative_error(ours, theirs))
        reader = self.reader(cache=GIBIBYTE)
        with torch.inference_mode():
            self.read(reader)
            text = insert_pictures(encoder.tokenize(OTHER_PROMPT), [self.picture.grid], encoder.special)
            prefix = next(entry for key, (entry, _) in reader.cache._entries.items() if key[0] == "prefix")
            length = len(prefix.pairs[0][0])
            hidden = reader.embed(text.token_ids[length:], self.dtype, self.device)
        rotary = encoder._rotary(text, length)
        self.add(f"{self.wanted[-1]} blocks on the {len(hidden)} positions after the picture", self.time(
            lambda: run_blocks(
                self.model.model.language_model, hidden.clone(), rotary, self.wanted, self.num_layers,
                past=prefix.pairs,
            )
        ))

    def calibration(self) -> None:
        # The miniature tokenizer needs about six times the tokens of Qwen's.
        prompts = [prompt[: len(prompt) // 6] for prompt in calibration_prompts()]
        language = self.model.model.language_model
        one, many = text_reader(language, self.tokenizer), batch_reader(language, self.tokenizer)
        calibrate(one, prompts[:2])
        apart = milliseconds(lambda: calibrate(one, prompts), self.device, 2, 0)
        together = milliseconds(lambda: calibrate(one, prompts, encode_many=many), self.device, 3, 1)
        self.report.add(f"calibration, {len(prompts)} prompts one by one", ms=apart)
        self.report.add(f"calibration, {len(prompts)} prompts in batches", ms=together,
                        **{"× faster than one by one": apart / together})
        single, batched = calibrate(one, prompts), calibrate(one, prompts, encode_many=many)
        self.report.add("calibration, mean over all dims: batches against one by one",
                        error=relative_error(batched.ordinary.mean, single.ordinary.mean))

    def stages(self) -> None:
        stages.measure(self.report, self.device, runs=self.runs)

    def launches(self) -> None:
        """What the CPU hands to the GPU in one call."""
        if self.device.type != "cuda":
            return
        from torch.profiler import ProfilerActivity, profile

        eager, graphs = self.reader(), self.reader(graphs=True)
        for name, work in (
            ("the note's way", self.note), ("eager", lambda: self.read(eager)),
            ("captured graphs", lambda: self.read(graphs)),
        ):
            with torch.inference_mode():
                work()
                with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
                    work()
            counts = {event.key: event.count for event in recorded.key_averages()}
            kernels = sum(count for key, count in counts.items() if "LaunchKernel" in key)
            self.report.add(f"{name}: launches", kernels=kernels, graphs=counts.get("cudaGraphLaunch", 0))

    def accuracy(self) -> None:
        """Each way in the model's dtype against float32 weights and activations."""
        with torch.inference_mode():
            note = self.note().float()
            ours, compiled = self.read(self.reader())[0].float(), self.read(self.reader(graphs=True))[0].float()
            # cos and sin made in float32 as well, as the modules' own forward would
            exact = self.note(self.model.float(), torch.float32)
        for name, states in (("the note's way", note), ("eager", ours), ("captured graphs", compiled)):
            self.report.add(f"{name}, {self.dtype} against float32", error=relative_error(states, exact),
                            worst_token=worst_token_error(states, exact))
        config = self.model.config.text_config
        cos, sin = mrope_rotary(
            mrope_positions(self.layout).to(self.device), config.head_dim, 5e6,
            self.model.model.language_model.rotary_emb.mrope_section, torch.float32,
        )
        theirs = self.encoder._rotary(self.layout, 0)
        self.report.add("our rotary tables against transformers'", error=max(
            relative_error(cos, theirs[0]), relative_error(sin, theirs[1])
        ))


def _numbers(*modules: torch.nn.Module) -> int:
    """Numbers in their matrices."""
    return sum(weight.numel() for module in modules for weight in module.parameters() if weight.ndim > 1)
