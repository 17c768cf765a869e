"""The assembled miniature in use: words, pictures and reference in, pictures out.

States come from the public vl_core API on the stock classes; painting many at once goes through
:mod:`forwards`, which tests hold to the stock pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vl_core import Qwen3VLEncoder, TokenLayout, VLStates
from vl_core.pictures import prepare_picture
from vl_core.states.layout import insert_pictures
from vl_core.states.vl_states import resolve_layer
from vl_core.zimage.pipeline import load_pipeline, prompt_layout

from .. import world
from ..train import assemble, models
from ..train import judge as judge_stage
from ..train.assemble import load_speaker
from ..train.forwards import decode, sample, text_states, vl_forward

LAYERS = tuple(range(-8, 0))


@dataclass(frozen=True, eq=False)
class Chain:
    """Everything loaded from one folder.

    Attributes:
        pipeline: diffusers' ZImagePipeline. ``encoder``: the VL without its head. ``judge``: reads pictures.
        device: where all of it is.
    """

    pipeline: Any
    encoder: Qwen3VLEncoder
    judge: nn.Module
    device: torch.device
    folder: Path

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> Chain:
        """From what :mod:`assemble` wrote, in float32.

        Raises:
            FileNotFoundError: if a part is missing.
        """
        for part in (assemble.PIPELINE, assemble.VISION, assemble.JUDGE):
            if not (folder / part).exists():
                raise FileNotFoundError(f"Expected {part} in {folder}. Run `python -m miniature assemble` first.")
        device = torch.device(device)
        pipeline = load_pipeline(folder / assemble.PIPELINE, device, torch.float32)
        encoder = Qwen3VLEncoder.from_pretrained(folder / assemble.VISION, device, torch.float32)
        return cls(pipeline, encoder, judge_stage.load(folder / assemble.JUDGE, device), device, folder)

    @cached_property
    def speaker(self) -> Any:
        """The VL with its head, to answer with; read from its folder once."""
        return load_speaker(self.folder).to(self.device)

    def words(self, prompt: str, layer: int = -2) -> tuple[Tensor, TokenLayout]:
        """The text encoder's states ``(L, D)`` of a prompt and their layout; layer −2 is what the DiT reads."""
        layout = prompt_layout(self.pipeline.tokenizer, prompt, "miniature")
        ids = layout.token_ids[None].to(self.device)
        return text_states(self.pipeline.text_encoder, ids, layer)[0].float(), layout.with_layer(layer)

    def words_many(
        self, prompts: Sequence[str], layer: int = -2, chunk: int = 128
    ) -> list[tuple[Tensor, TokenLayout]]:
        """:meth:`words` of many prompts at once, the states on the CPU."""
        layouts = [prompt_layout(self.pipeline.tokenizer, prompt, "miniature") for prompt in prompts]
        found = []
        for part in _parts(layouts, chunk):
            states = text_states(self.pipeline.text_encoder, _padded_ids(part).to(self.device), layer).float().cpu()
            found += [
                (one[: len(layout)].clone(), layout.with_layer(layer))
                for one, layout in zip(states, part, strict=True)
            ]
        return found

    def look(self, picture: Tensor, prompt: str, *, mute: bool = False, layers: Sequence[int] = LAYERS) -> VLStates:
        """What the VL makes of a picture ``(H, W, 3)`` in [0, 1] and a prompt."""
        return self.encoder.encode([picture], prompt, layers, mute=mute)

    @torch.no_grad()
    def look_many(
        self, pictures: Sequence[Tensor], prompts: Sequence[str], *, mute: bool = False, layers: Sequence[int] = LAYERS,
        system_prompt: str = "", chunk: int = 128,
    ) -> list[VLStates]:
        """:meth:`look` at many at once, the states on the CPU."""
        encoder, found, layers = self.encoder, [], sorted(layers)
        ready = [prepare_picture(picture)[0] for picture in pictures]
        layouts = [
            insert_pictures(encoder.tokenize(prompt, system_prompt), [one.grid], encoder.special)
            for prompt, one in zip(prompts, ready, strict=True)
        ]
        for shown, part in zip(_parts(ready, chunk), _parts(layouts, chunk), strict=True):
            pixels = torch.stack([one.pixels for one in shown]).to(self.device).permute(0, 3, 1, 2)
            hidden = vl_forward(
                encoder.model, _padded_ids(part).to(self.device), None if mute else pixels.float() / 127.5 - 1,
                at=int(part[0].picture_positions()[0][0]), output_hidden_states=True,
            ).hidden_states
            states = torch.stack([hidden[layer] for layer in layers], 1).cpu()
            indices = tuple(resolve_layer(layer, encoder.num_layers) for layer in layers)
            found += [
                VLStates(
                    one[:, : len(layout)].clone(), indices, encoder.num_layers, layout, layout.prompt, system_prompt,
                    encoder.name,
                )
                for one, layout in zip(states, part, strict=True)
            ]
        return found

    def paint(
        self, states: Sequence[Tensor], seeds: Sequence[int], *, steps: int = 8, guidance: float = 1.0,
        outside: Sequence[Tensor] | None = None, act: tuple[float, float] = (0.0, 1.0),
    ) -> Tensor:
        """Pictures ``(N, 3, 128, 128)`` in [-1, 1], one per states ``(L, D)`` and seed.

        Before and after the shares of the steps that ``act`` names, the states ``outside`` rule in place of ``states``.
        """
        options = {"steps": steps, "guidance": guidance, "unwanted": self.words("")[0] if guidance else None}
        latents = torch.cat([noise(seed) for seed in seeds]).to(self.device)
        bounds = (0, round(act[0] * steps), round(act[1] * steps), steps)
        for ruling, window in zip((outside, states, outside), pairwise(bounds), strict=True):
            if window[0] < window[1]:
                latents = sample(self.pipeline.transformer, ruling, latents, window=window, **options)
        return decode(self.pipeline.vae, latents)

    def read(self, pictures: Tensor) -> dict[str, Tensor]:
        """The judge's logits, see :class:`Judge`."""
        return judge_stage.read(self.judge, pictures)


def _parts(items: Sequence, size: int) -> list[Sequence]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _padded_ids(layouts: Sequence[TokenLayout]) -> Tensor:
    """Token ids ``(B, L)``, padded on the right; nothing before reads what comes after."""
    return pad_sequence([layout.token_ids for layout in layouts], batch_first=True)


def noise(seed: int) -> Tensor:
    """The latents ``(1, 16, 16, 16)`` that ZImagePipeline draws for a CPU generator of that seed."""
    shape = (1, models.LATENT_CHANNELS, models.LATENT_SIDE, models.LATENT_SIDE)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def as_image(pictures: Tensor) -> list[Tensor]:
    """``(N, 3, H, W)`` in [-1, 1] -> pictures ``(H, W, 3)`` in [0, 1], as nodes and encoder take them."""
    return list(((pictures + 1) / 2).permute(0, 2, 3, 1))


@torch.no_grad()
def answers(chain: Chain, pictures: Tensor, request: str, longest: int = 40) -> list[str]:
    """What the VL itself says about pictures ``(N, 3, 128, 128)`` in [-1, 1], greedily."""
    model, tokenizer = chain.speaker, chain.encoder.tokenizer
    text = world.prompt_turn(world.PICTURE + request)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=chain.device)
    ids, start = ids.expand(len(pictures), -1), ids.shape[1]
    for _ in range(longest):
        hidden = vl_forward(model, ids, pictures).last_hidden_state[:, -1]
        following = F.linear(hidden, model.get_input_embeddings().weight).argmax(-1, keepdim=True)
        ids = torch.cat([ids, following], 1)
        if (ids[:, start:] == tokenizer.eos_token_id).any(1).all():
            break
    return [tokenizer.decode(row[start:]).split("<|im_end|>")[0] for row in ids]


@torch.no_grad()
def look_of(chain: Chain, pictures: Tensor) -> list[str]:
    """What the VL says of the look of pictures ``(N, 3, 128, 128)`` in [-1, 1], held to the form of its answers.

    Each name is the likeliest of its kind after what stands before it. Of the world's pictures the VL says the same by
    itself; of a photograph, which it has never seen, it may not keep to any form.
    """
    model, tokenizer = chain.speaker, chain.encoder.tokenizer

    def tokens(*texts: str) -> Tensor:
        return torch.tensor(tokenizer(list(texts), add_special_tokens=False)["input_ids"], device=chain.device)

    ids = tokens(world.prompt_turn(world.PICTURE + world.DESCRIBE_LOOK[1])).expand(len(pictures), -1)
    start = ids.shape[1]
    form = (("", world.STYLES, " style,"), (" ", world.COLORS, " background,"), (" ", world.MOODS, " colors"))
    for before, names, after in form:
        choices = tokens(*(before + name for name in names))[:, 0]  # a name is one token
        hidden = vl_forward(model, ids, pictures).last_hidden_state[:, -1]
        likeliest = F.linear(hidden, model.get_input_embeddings().weight[choices]).argmax(-1)
        ids = torch.cat([ids, choices[likeliest, None], tokens(after).expand(len(pictures), -1)], 1)
    return [tokenizer.decode(row[start:]) for row in ids]
