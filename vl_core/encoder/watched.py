"""The modules that are run, looked at before every reading: whether they can be run, and whether they are the same."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .forward import fits
from .identity import SourcesIdentity, WeightsIdentity
from .modules import Language, Vision
from .sight import Sight, Tree, hooked_everywhere


class Watched:
    """A vision tower and a language model."""

    def __init__(self, visual: Vision, language: Language) -> None:
        self._visual, self._language = visual, language
        self._tree, self._identity, self._sources = Tree(visual, language), WeightsIdentity(), SourcesIdentity()
        self._known: tuple[int, bool] = -1, False

    def fit(self) -> bool:
        """What :func:`~.forward.fits` says of them; asked again only where something is another object."""
        return self._fit(self._tree())

    def number(self, sources: Sequence[Tensor] | None = None) -> int:
        """Another one whenever something changed, see :class:`~.identity.WeightsIdentity`.

        Args:
            sources: weights and buffers to tell them by instead of their own, for a host that copies them at each load.
        """
        sight = self._tree()
        return self._identity.of(sight) if sources is None else self._sources(sources, sight.modules)

    def look(self) -> int | None:
        """Their number, None if they do not fit: both by one look."""
        sight = self._tree()
        return self._identity.of(sight) if self._fit(sight) else None

    def _fit(self, sight: Sight) -> bool:
        if hooked_everywhere():
            return False
        if sight.version != self._known[0]:
            self._known = sight.version, fits(self._visual, self._language)
        return self._known[1]
