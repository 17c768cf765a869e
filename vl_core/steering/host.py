"""What a place that steers offers: ComfyUI, diffusers and the miniature's bench each have one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from ..encoder.writing import Description
from ..states.families import Family
from ..states.statistics import ReferenceStatistics
from ..states.vl_states import VLStates
from .store import Store
from .takes import Take
from .way import Text


class Host(Protocol):
    """The encoders at hand.

    Attributes:
        family: of the text encoder.
        store: what is kept between runs.
    """

    family: Family
    store: Store

    def identity(self) -> str:
        """What the vision encoder's weights are: another LoRA, hook or file is another identity."""
        ...

    def check(self) -> None:
        """Refuse encoders whose states cannot be mixed, before one of them runs.

        Raises:
            ValueError: saying which fit.
        """
        ...

    def words(self, prompt: str, added: str = "") -> list[Text]:
        """The text encoder's entries for a prompt with ``added`` put after it; several where it is scheduled."""
        ...

    def read(
        self, pictures: Sequence[Tensor], prompt: str, layers: Sequence[int], *, muted: bool = False,
        system_prompt: str = "", budget: int, group: str = "",
    ) -> tuple[VLStates, list[str]]:
        """Qwen3-VL's states of pictures and a prompt, and remarks.

        Args:
            pictures: ``(1, H, W, C)`` or ``(H, W, C)`` each.
            layers: hidden states to capture. muted: leave the pictures' places empty.
            budget: most image tokens a picture may take.
            group: whose template, by the group's name; the text encoder's own family if empty.
        """
        ...

    def write(
        self, pictures: Sequence[Tensor], instruction: str, *, longest: int, budget: int
    ) -> Description:
        """What Qwen3-VL writes about pictures, the likeliest words."""
        ...

    def instruction(self, take: Take) -> str:
        """What Qwen3-VL is asked for a take; the take's own words unless the model knows others."""
        ...

    def statistics(self) -> tuple[Sequence[ReferenceStatistics], str]:
        """The text encoder's statistics, one for each layer its family reads, and where they come from."""
        ...
