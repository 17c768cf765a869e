"""The modules that are run, looked at before every reading: whether they can be run, and whether they are the same."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from .forward import fits
from .identity import Tree, WeightsIdentity, are_plain, hooked_everywhere, weights_in
from .modules import Language, Vision


class Watched:
    """A vision tower and a language model."""

    def __init__(self, visual: Vision, language: Language) -> None:
        self._visual, self._language = visual, language
        self._tree, self._identity = Tree(visual, language), WeightsIdentity()
        self._known: list[nn.Module] | None = None

    def fit(self) -> bool:
        """What :func:`~.forward.fits` says of them; their parts are looked for again only where modules changed."""
        modules = self._tree()
        if modules is self._known:
            return not hooked_everywhere() and are_plain(modules)
        found = fits(self._visual, self._language)
        self._known = modules if found else None
        return found

    def number(self, weights: Iterable[Tensor] | None = None) -> int:
        """Another one whenever something changed, see :class:`~.identity.WeightsIdentity`.

        Args:
            weights: to tell them by, their parameters unless given.
        """
        modules = self._tree()
        return self._identity(weights_in(modules) if weights is None else weights, modules)
