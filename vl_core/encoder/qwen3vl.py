"""Qwen3-VL through transformers: pictures and a prompt in, the hidden states we ask for out.

Only what those states need is loaded and run: the vision tower, the first blocks of the language model, no lm_head;
what was computed before is kept (:mod:`.prefix`). The block loop is ours, so one implementation serves transformers
4.57 and 5; ``tests/unit/encoder/test_encoder.py`` holds it to transformers' own ``output_hidden_states``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..pictures import DEFAULT_BUDGET, Picture, patchify, prepare_picture, split_batch
from ..stages.extract import DEFAULT_LAYER, VLExtraction, extract
from ..states.families import ZIMAGE, Family
from ..states.layout import TokenLayout, insert_pictures, mrope_positions
from ..states.tensors import all_finite
from ..states.vl_states import VLStates, resolve_layer
from .cache import ByteCache, default_limit
from .folder import HEAD, load_tokenizer, read_config, read_head, read_model, variant_of
from .forward import signed
from .generate import asking
from .graphs import GraphPool
from .layouts import Layouts, require_string, tokenised, vocabulary_of
from .modules import Qwen3VL
from .reader import Reader
from .room import with_room
from .special import special_tokens

if TYPE_CHECKING:
    import os

log = logging.getLogger(__name__)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Qwen3VLEncoder:
    """A loaded Qwen3-VL without its lm_head.

    The module's device is looked up at every encode, so whoever owns ``model`` may move it.

    Attributes:
        model: transformers' ``Qwen3VLModel``, perhaps with fewer language blocks than the file.
        tokenizer: its tokenizer.
        num_layers: blocks of the whole model, those not loaded included: what negative layers count from.
        loaded_layers: blocks of it that are loaded; the deepest ``hidden_states`` index that can be asked for.
        width: size of a hidden state.
        name: what the model is called; ``variant``: "Instruct" or "Thinking".
        special: ids of the tokens that carry structure.
        folder: where it was loaded from, None for a module that was already there.
        reader: runs the model and keeps what can be used again; :meth:`forget` gives that back.
        fast: whether the merged forward pass of :mod:`.forward` may be used. Off, the modules' own is, and nothing is
            kept, as with modules that are not plain Qwen3-VL or have hooks.
    """

    def __init__(
        self,
        model: Qwen3VL,
        tokenizer: Any,
        num_layers: int,
        name: str = "qwen3-vl",
        variant: str = "Instruct",
        *,
        folder: Path | None = None,
        cache_bytes: int | None = None,
        every_layer: bool = False,
        compile: bool = False,
        fast: bool = True,
    ) -> None:
        """Wrap a module that is already there.

        Args:
            folder: what :meth:`head` reads from, if the model's own weights do not hold it.
            cache_bytes: most memory on the model's device for what can be used again, 0 to keep nothing; None is
                :func:`default_limit`.
            every_layer: keep the states of all layers on the way, so that asking for another one runs nothing.
            compile: replay captured CUDA graphs, one for each size of picture and prompt. Faster, but every size takes
                memory and a slow first run. Where that is not possible the model runs as usual.
            fast: see above.

        Raises:
            ValueError: if the tokenizer is not the model's, or its attention needs a mask to be causal.
        """
        if model.language_model.config._attn_implementation == "eager":
            raise ValueError(
                f"{name}: expected sdpa or flash attention, got eager. Load it with attn_implementation='sdpa'."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.num_layers = num_layers
        self.width = model.config.text_config.hidden_size
        self.name = name
        self.variant = variant
        self.folder = folder
        self._head: Tensor | None = None
        self._layouts = Layouts()
        self.special = special_tokens(tokenizer, model.config, name)
        self.fast = fast
        self._kept = default_limit() if cache_bytes is None else cache_bytes, every_layer, compile
        self.reader = self._new_reader()

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        deepest_layer: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Qwen3VLEncoder:
        """Load a Hugging Face folder of Qwen3-VL, Instruct or Thinking, quantised or not, without network access.

        Args:
            path: folder with config.json, safetensors (one file, or shards and their index) and the tokenizer.
            device: where every weight is read to; "meta" reads none yet, see :mod:`.reread`.
            dtype: what every weight is cast to: bfloat16, float16 or float32.
            deepest_layer: deepest ``hidden_states`` index that will be asked for (-6 of 36 blocks loads 31); None
                loads all.
            progress: called with (tensors read, tensors to read).
            options: ``cache_bytes``, ``every_layer``, ``compile`` and ``fast`` of the constructor.

        Raises:
            FileNotFoundError: if the folder, config.json, the weights, a shard or the tokenizer is missing.
            ValueError: for another architecture, damaged weights, quantised ones that cannot be read on this device,
                missing tensors, wrong shapes, a tokenizer of another model, another dtype, or a layer the model does
                not have.
            ImportError: if transformers is older than 4.57, or a quantiser's library is missing.
        """
        folder = Path(path)
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected bfloat16, float16 or float32, got {dtype}.")
        config = read_config(folder)
        num_layers = config.text_config.num_hidden_layers
        blocks = num_layers if deepest_layer is None else resolve_layer(deepest_layer, num_layers)
        tokenizer = load_tokenizer(folder)
        special_tokens(tokenizer, config, folder.name)  # before gigabytes are read
        model = read_model(folder, config, blocks, device, dtype, progress)
        model.eval().requires_grad_(False)
        log.info("Loaded %s: %d of %d blocks in %s.", folder.name, blocks, num_layers, dtype)
        name, variant = folder.resolve().name, variant_of(folder, tokenizer)
        return cls(model, tokenizer, num_layers, name, variant, folder=folder, **options)

    @property
    def loaded_layers(self) -> int:
        return len(self.model.language_model.layers)

    @property
    def device(self) -> torch.device:
        return self.model.language_model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.language_model.embed_tokens.weight.dtype

    def tokenize(self, prompt: str, system_prompt: str | None = None, family: Family = ZIMAGE) -> TokenLayout:
        """The family's template filled with ``prompt``, tokenised as one string, without padding.

        Args:
            prompt: the user's words, as they are: braces, newlines and an empty string included.
            system_prompt: put into a system turn before; None or "" means no such turn, as Z-Image has it.
            family: whose template.

        Raises:
            TypeError: if a prompt is not a string.
            ValueError: if a prompt contains a token reserved for pictures.
        """
        require_string(prompt, "prompt")
        if system_prompt is not None:
            require_string(system_prompt, "system_prompt")
        key = self._name_of(prompt, system_prompt, family)
        return self._layouts(key, lambda: tokenised(*key[1:]))

    def lay_out(
        self, prompt: str, grids: Sequence[tuple[int, int]], system_prompt: str | None = None, family: Family = ZIMAGE
    ) -> TokenLayout:
        """:meth:`tokenize` with pictures of these merged ``(rows, columns)`` before the words."""
        key, text = (*self._name_of(prompt, system_prompt, family), tuple(grids)), self.tokenize
        return self._layouts(key, lambda: insert_pictures(text(prompt, system_prompt, family), grids, self.special))

    def encode(
        self,
        images: Sequence[Tensor],
        prompt: str,
        layers: int | Sequence[int] = (DEFAULT_LAYER,),
        system_prompt: str | None = None,
        *,
        budget: int = DEFAULT_BUDGET,
        mute: bool = False,
        check: Callable[[], None] = lambda: None,
        notes: list[str] | None = None,
        family: Family = ZIMAGE,
    ) -> VLStates:
        """Hidden states of pictures and prompt in the family's template, pictures before the words.

        State ``k`` is what transformers 5 gives as ``hidden_states[k]``: 0 the input embeddings with the pictures in
        place, ``k`` the output of block ``k - 1`` before that block's deepstack features are added, ``num_layers``
        after the final norm. (transformers 4.57 adds them in place, so its own 1 … 3 contain them at image
        positions; ComfyUI's loader does the same.)

        Args:
            images: pictures as :func:`check_picture` takes them or batches of them, float in [0, 1] or
                uint8, ``(B, H, W, C)``; may be empty.
            prompt: the user's words.
            layers: one ``hidden_states`` index or several, negative from the end.
            system_prompt: see :meth:`tokenize`.
            budget: most image tokens per picture.
            mute: zero the pictures' embeddings and deepstack features; every position keeps its place.
            check: called between pictures and blocks; whatever it raises ends the encode.
            notes: gets one line for everything that was changed in a picture.
            family: whose template; ask for its layers in ``layers`` (:func:`stack_layers`).

        Returns:
            states ``(K, L, D)`` in the model's dtype on its device.

        Raises:
            TypeError: if a prompt is not a string or a picture not a tensor.
            ValueError: for a layer that does not exist or was not loaded, a picture or prompt that cannot be
                encoded, a sequence longer than the model's context, or states that overflowed.
        """
        wanted = self._resolve_layers(layers)
        self.tokenize(prompt, system_prompt, family)  # what is wrong with it is told before anything of the pictures
        pictures = []
        for number, image in enumerate(split_batch(images), 1):
            picture, changes = prepare_picture(image, budget, f"image {number}")
            pictures.append(picture)
            if notes is not None:
                notes += changes
        layout = self.lay_out(prompt, [picture.grid for picture in pictures], system_prompt, family)
        limit = self.model.config.text_config.max_position_embeddings
        if len(layout) > limit:
            raise ValueError(
                f"prompt and images: expected at most {limit} tokens, got {len(layout)}. Use fewer pictures, a "
                "smaller token budget or a shorter prompt."
            )
        states = self._read(layout, pictures, mute, wanted, check)
        return VLStates(states, wanted, self.num_layers, layout, prompt, system_prompt or "", self.name)

    def head(self) -> Tensor:
        """What turns the last states into scores of words, ``(vocabulary, D)`` in the model's dtype.

        Models that use their embeddings for it, as Qwen3-VL-4B does, give those. Of others it is read at the first
        call and kept on the CPU, since only writing words needs it.

        Raises:
            FileNotFoundError: if the folder's weights are gone.
            ValueError: if the folder has no head of the model's size, or there is no folder to read it from.
        """
        embeddings = self.model.language_model.embed_tokens.weight
        if self.model.config.tie_word_embeddings:
            return embeddings
        if self._head is None:
            if self.folder is None:
                raise ValueError(
                    f"{self.name}: expected a model that scores words with its embeddings, or the folder to read "
                    f"{HEAD} from, got neither. Load it with Qwen3VLEncoder.from_pretrained."
                )
            self._head = read_head(self.folder, embeddings.shape, self.dtype)
        return self._head

    def last_state(self, layout: TokenLayout, pictures: list[Picture], check: Callable[[], None]) -> Tensor:
        """The last position's state ``(D,)`` after the last norm, by the modules' own forward."""
        with torch.inference_mode():
            states = self._run_blocks(layout, *self._see(pictures, False, check), (self.num_layers,), check)
        return states[0][0, -1]

    def forget(self) -> None:
        """Give back the memory of everything that is kept for later encodes."""
        self._layouts.forget()
        self.reader.forget()

    def use(self, model: Qwen3VL) -> None:
        """Read with this module from now on, one of the same shape; nothing that was kept is."""
        self.forget()
        self.model = model
        self.reader = self._new_reader()

    def _new_reader(self) -> Reader:
        limit, every_layer, compile = self._kept
        return Reader(
            self.model.visual, self.model.language_model, self.num_layers, self._rotary, ByteCache(limit),
            every_layer=every_layer, graphs=GraphPool() if compile else None, exact=True,
        )

    def extract(self, image: Any, text: str, hidden_layer: int = DEFAULT_LAYER, **options: Any) -> VLExtraction:
        """Encode, select, mask outliers and normalise in one call, under the research note's names.

        Arguments, ``options`` and errors are those of :func:`extract`.
        """
        return extract(self, image, text, hidden_layer, **options)

    def _name_of(self, prompt: str, system_prompt: str | None, family: Family) -> tuple:
        """All that a text's layout depends on. A tokenizer to which tokens were added is another one."""
        vocabulary = vocabulary_of(self.tokenizer)
        return vocabulary, self.tokenizer, prompt, system_prompt or "", family, self.special, self.name

    def _resolve_layers(self, layers: int | Sequence[int]) -> tuple[int, ...]:
        """Ascending ``hidden_states`` indices, each one that what is loaded can give."""
        asked = [layers] if isinstance(layers, int) else list(layers)
        if not asked:
            raise ValueError("layers: expected at least one layer, got none.")
        indices = {resolve_layer(layer, self.num_layers): layer for layer in asked}
        deepest = max(indices)
        if deepest > self.loaded_layers:
            raise ValueError(
                f"layers: {indices[deepest]} was not loaded, the deepest layer of this {self.name} is "
                f"{self.loaded_layers - self.num_layers - 1}. Reload it with a deeper `deepest layer`."
            )
        return tuple(sorted(indices))

    def _read(
        self, layout: TokenLayout, pictures: Sequence[Picture], mute: bool, wanted: tuple[int, ...],
        check: Callable[[], None],
    ) -> Tensor:
        """States ``(K, L, D)``, an ordinary tensor that a caller may change in place."""
        number = self.reader.watched.look() if self.fast else None
        if number is None:
            with torch.inference_mode():
                captured = with_room(
                    lambda: self._run_blocks(layout, *self._see(pictures, mute, check), wanted, check),
                    self.reader.cache, self.forget,
                )
            self._expect_finite(captured)
            return torch.cat(captured)  # out here it is an ordinary tensor
        options = {"dtype": self.dtype, "device": self.device, "mute": mute, "check": check, "number": number}
        with torch.inference_mode():
            states = self.reader.read(layout, pictures, wanted, vet=self._expect_finite, **options)
        return torch.stack(states)

    def _expect_finite(self, states: Sequence[Tensor]) -> None:
        if not all_finite(*states):
            raise ValueError(f"{self.name}: the states overflowed in {self.dtype}. Load the model as bf16 or fp32.")

    def _rotary(self, layout: TokenLayout, start: int) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines ``(L, 1, d)`` of the positions from ``start`` on."""
        positions = mrope_positions(layout)[:, None, start:].to(self.device)
        cos, sin = self.model.language_model.rotary_emb(torch.empty(0, dtype=self.dtype, device=self.device), positions)
        return cos[0, :, None], signed(sin[0, :, None])

    def _see(
        self, pictures: Sequence[Picture], mute: bool, check: Callable[[], None]
    ) -> tuple[Tensor | None, list[Tensor]]:
        """All pictures' embeddings ``(n, D)`` and deepstack features, one ``(n, D)`` per level.

        None and no levels without pictures; muted pictures need no vision tower, their embeddings are zero.
        """
        if not pictures:
            return None, []
        if mute:
            return torch.zeros(sum(picture.tokens for picture in pictures), self.width), []
        seen = []
        for picture in pictures:
            check()
            pixel_values, grid_thw = patchify(picture)
            with asking(check, self.model.visual.blocks):
                output = self.model.visual(pixel_values.to(self.device, self.dtype), grid_thw=grid_thw.to(self.device))
            # transformers 4.57 returns (embeddings, deepstack), 5 an object.
            seen.append(output[-2:] if isinstance(output, tuple) else (output.pooler_output, output.deepstack_features))
        embeddings, features = zip(*seen, strict=True)
        return torch.cat(embeddings), [torch.cat(level) for level in zip(*features, strict=True)]

    def _run_blocks(
        self, layout: TokenLayout, embeddings: Tensor | None, deepstack: list[Tensor], wanted: tuple[int, ...],
        check: Callable[[], None],
    ) -> list[Tensor]:
        """States ``(1, L, D)`` at the ``wanted`` indices, running no block beyond the last."""
        language = self.model.language_model
        device = self.device
        hidden = language.embed_tokens(layout.token_ids.to(device))[None]
        at_pictures = torch.cat([*layout.picture_positions(), torch.empty(0, dtype=torch.int64)]).to(device)
        if embeddings is not None:
            hidden[0, at_pictures] = embeddings.to(hidden)
        rotary = language.rotary_emb(hidden, mrope_positions(layout)[:, None].to(device))
        captured = [hidden] if 0 in wanted else []
        for index in range(wanted[-1]):
            check()
            # Without a mask sdpa is causal, and a sequence of its own needs nothing else.
            hidden = language.layers[index](hidden, position_embeddings=rotary, attention_mask=None, position_ids=None)
            if isinstance(hidden, tuple):
                hidden = hidden[0]
            if index + 1 in wanted:
                captured.append(language.norm(hidden) if index + 1 == self.num_layers else hidden)
            if index < len(deepstack):
                hidden = hidden.clone()  # what was captured stays as the block left it
                hidden[0, at_pictures] += deepstack[index].to(hidden)
        return captured
