"""Z-Image through diffusers: its text states as the pipeline makes them, and a picture painted from states."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..encoder.folder import read_tokenizer
from ..encoder.special import SPECIAL_TOKENS
from ..reports.inspection import CAPTION_MULTIPLE
from ..states.families import ZIMAGE, Family
from ..states.layout import USER_TURN, SpecialTokens, TokenLayout, text_layout
from ..states.statistics import ENCODER_LAYER
from .checks import read_json, text_encoder_folder
from .progress import without_library_bars

if TYPE_CHECKING:
    from diffusers import ZImagePipeline as ZImagePipeline  # pyright: ignore[reportPrivateImportUsage] (see load_pipeline)
    from PIL.Image import Image

PADDED_LENGTH = 512  # the pipeline's default max_sequence_length; longer prompts would be cut silently


@dataclass(frozen=True)
class ZImageFolder:
    """What a diffusers folder of Z-Image says about itself.

    Attributes:
        width: of a text state. ``tokenizer``: where its tokenizer is.
        caption_limit: most caption tokens the transformer has positions for.
        side_multiple, side_limit: what the picture's sides must be multiples of, and their maximum, in pixels.
    """

    path: Path
    tokenizer: Path
    width: int
    caption_limit: int
    side_multiple: int
    side_limit: int

    @classmethod
    def check(cls, path: str, option: str) -> ZImageFolder:
        """Look at the folder's JSON files.

        Raises:
            FileNotFoundError, ValueError: if it is no Z-Image in diffusers' layout.
        """
        folder = Path(path)
        index = read_json(folder / "model_index.json", option)
        if index.get("_class_name") != "ZImagePipeline":
            raise ValueError(f"{option}: expected a ZImagePipeline, got {index.get('_class_name')!r} in {path}.")
        for part, made in index.items():  # diffusers would run a file of that name in the folder
            if isinstance(made, list) and made[:1] not in (["diffusers"], ["transformers"], [None]):
                raise ValueError(
                    f"{option}: model_index.json in {path} has code of its own for {part}, which is not run. Use the "
                    "published folder."
                )
        _, tokenizer, width, _ = text_encoder_folder(path, option)
        transformer = read_json(folder / "transformer" / "config.json", option)
        vae = read_json(folder / "vae" / "config.json", option)
        try:
            caption, *sides = transformer["axes_lens"]
            multiple = 2 ** len(vae["block_out_channels"])  # the VAE's factor times the patch size 2
            limits = int(caption) - CAPTION_MULTIPLE, multiple, int(min(sides)) * multiple
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{option}: the configs in {path} lack or garble {error}.") from error
        return cls(folder, tokenizer, width, *limits)

    def check_size(self, width: int, height: int) -> None:
        """Raise ValueError unless a picture of this size can be painted."""
        for option, side in (("--width", width), ("--height", height)):
            if side % self.side_multiple or not self.side_multiple <= side <= self.side_limit:
                raise ValueError(
                    f"{option}: expected a multiple of {self.side_multiple} up to {self.side_limit}, got {side}."
                )

    def check_caption(self, tokens: int) -> None:
        """Raise ValueError if a caption is too long for the transformer."""
        if tokens > self.caption_limit:
            raise ValueError(
                f"the conditioning has {tokens} tokens, Z-Image takes up to {self.caption_limit}. Shorten the prompt, "
                "lower --image-tokens or --strength, or raise --downsample."
            )


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """Ids of the structural tokens in a Qwen3 tokenizer; -1 for those it lacks."""
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token, _ in SPECIAL_TOKENS}
    return SpecialTokens(**{name: -1 if found is None else found for name, found in ids.items()})


def prompt_layout(tokenizer: Any, prompt: str, model: str = "", family: Family = ZIMAGE) -> TokenLayout:
    """Layout of a prompt in Z-Image's template, or another's.

    Raises:
        ValueError: if the tokenizer is of another family, or the prompt contains a token reserved for pictures.
    """
    ids = tokenizer(family.turn.format(prompt), add_special_tokens=False)["input_ids"]
    return text_layout(
        ids, special=special_tokens(tokenizer), turn=family.turn, tail_tokens=family.tail_tokens, layer=ENCODER_LAYER,
        prompt=prompt, model=model,
    )


def load_tokenizer(folder: Path) -> Any:
    return read_tokenizer(folder)


def load_pipeline(folder: Path, device: torch.device, dtype: torch.dtype, **parts: Any) -> ZImagePipeline:
    """From its folder, with ``parts`` in place of those in it."""
    # diffusers loads its names when they are asked for, and does not tell checkers that it exports them.
    from diffusers import ZImagePipeline  # pyright: ignore[reportPrivateImportUsage]

    with warnings.catch_warnings(), without_library_bars():
        warnings.simplefilter("ignore", FutureWarning)  # from 0.42 on it is called dtype, before it is not
        pipeline = ZImagePipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True, **parts)
    return pipeline.to(device)


@torch.no_grad()
def encode_text(pipeline: ZImagePipeline, prompt: str, model: str = "") -> tuple[Tensor, TokenLayout]:
    """The pipeline's own states ``(L, D)`` of a prompt, layer -2: bit for bit what it would paint from.

    Raises:
        ValueError: if the pipeline's chat template is not Z-Image's.
    """
    layout = prompt_layout(pipeline.tokenizer, prompt, model)
    message = [{"role": "user", "content": prompt}]
    filled = pipeline.tokenizer.apply_chat_template(
        message, tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    if filled != USER_TURN.format(prompt):
        raise ValueError(
            f"expected the chat template {USER_TURN.format(prompt)!r}, the pipeline's tokenizer fills in {filled!r}. "
            "Download the folder's tokenizer again."
        )
    (states,), _ = pipeline.encode_prompt(
        prompt, do_classifier_free_guidance=False, max_sequence_length=max(PADDED_LENGTH, len(layout))
    )
    return states, layout


@torch.no_grad()
def text_states(
    pipeline: ZImagePipeline, prompt: str, family: Family, model: str = ""
) -> tuple[Tensor, TokenLayout]:
    """As :func:`encode_text` in another template than the pipeline's own: there is nothing to compare it with."""
    layout = prompt_layout(pipeline.tokenizer, prompt, model, family)
    ids = layout.token_ids[None].to(pipeline.text_encoder.device)
    hidden = pipeline.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states
    return hidden[ENCODER_LAYER][0], layout


def paint(
    pipeline: ZImagePipeline,
    states: Tensor,
    *,
    negative: str = "",
    steps: int,
    guidance: float,
    width: int,
    height: int,
    seed: int,
    over: Tensor | None = None,
    denoise: float = 1.0,
    outside: Tensor | None = None,
    window: tuple[float, float] = (0.0, 1.0),
    progress: Callable[[], None] = lambda: None,
) -> Image:
    """Paint from states ``(L, D)``. The noise is drawn on the CPU, so a seed means the same on every device.

    Args:
        negative: what to stay away from; only read if ``guidance`` > 0.
        over: a picture to paint over, uint8 ``(H, W, 3)``; cut about its middle to the shape asked for.
        denoise: how much of it is painted anew, above 0: the steps before that share are left out. 1 paints all anew,
            as without it.
        outside: states ``(L, D)`` that rule before and after ``window``, shares of the steps; as ``states`` if None.
        progress: called after each step.
    """
    first, last = (round(share * steps) for share in window)
    plain = states if outside is None else outside

    def ruling(step: int) -> list[Tensor]:
        return [(states if first <= step < last else plain).to(pipeline.device)]

    unwanted = [encode_text(pipeline, negative)[0]] if guidance > 0 else None
    runner: Any = pipeline  # it takes and gives more than its annotations say
    options, skipped = {}, 0
    if over is not None and denoise < 1:
        from diffusers import ZImageImg2ImgPipeline  # pyright: ignore[reportPrivateImportUsage] (see load_pipeline)
        from PIL import Image, ImageOps

        runner = ZImageImg2ImgPipeline(**pipeline.components)
        start = ImageOps.fit(Image.fromarray(over.numpy()), (width, height), Image.Resampling.LANCZOS)
        share = max(denoise, 1 / steps)  # one step is left whatever the share
        options, skipped = {"image": start, "strength": share}, int(steps - steps * share)

    def step_done(_pipeline, step, _timestep, values):
        progress()
        return {**values, "prompt_embeds": ruling(skipped + step + 1)}

    runner.set_progress_bar_config(disable=True)
    return runner(
        prompt_embeds=ruling(skipped), negative_prompt_embeds=unwanted, num_inference_steps=steps,
        guidance_scale=guidance, width=width, height=height, generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=step_done, **options,
    ).images[0]
