"""What was read out of a forward pass, by site or by hook name."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from engine.errors import SpecError
from engine.hooks.capture import Captured
from engine.hooks.sites import Site


def as_site(named: Site | str) -> Site:
    """The site that is meant, by itself or by its TransformerLens hook name.

    Raises:
        SpecError: there is no site of that name.
    """
    try:
        return named if isinstance(named, Site) else Site.parse(named)
    except ValueError as wrong:
        raise SpecError(f"{str(wrong).rstrip('.')}.") from wrong


def as_sites(named: Site | str | Sequence[Site | str]) -> list[Site]:
    """The same for one or several."""
    return [as_site(one) for one in ([named] if isinstance(named, Site | str) else named)]


class Got(Mapping[Site | str, Tensor]):
    """Site -> tensor of the last forward pass inside the block; asked for by site or by hook name, listed by site.

    Streams, outputs, z and neurons are [batch, pos, width]; head_out, q, k and v [batch, pos, head, width]; scores and pattern
    [batch, head, query, key]. A site with a head or a unit gives that part, without the axis of heads. Prompts of different length
    are padded on the right, so the column of a token is its index.
    """

    def __init__(self, captured: Captured) -> None:
        """Takes what the engine captures."""
        self._captured = captured

    def __getitem__(self, named: Site | str) -> Tensor:
        """The tensor at a site."""
        site = as_site(named)
        if site not in self._captured:
            there = ", ".join(f"'{key.hook_name}'" for key in self._captured) or "nothing; the model has not run inside the block"
            raise KeyError(f"nothing was captured at '{site.label}'; there is: {there}")
        return self._captured[site]

    def __iter__(self) -> Iterator[Site | str]:
        """The sites, in the order of the forward pass."""
        return iter(self._captured)

    def __len__(self) -> int:
        """How many sites there are."""
        return len(self._captured)

    def grad(self, named: Site | str) -> Tensor:
        """The gradient at a site, of the shape of what was captured there.

        Raises:
            ModelError: there is none: `grad=True` was not asked for, or nothing went backward to that site.
        """
        return self._captured.grad(as_site(named))

    def __repr__(self) -> str:
        """Sites and shapes."""
        return "\n".join(f"{site.hook_name:<32} {site.label:<16} {list(x.shape)}" for site, x in self._captured.items()) or "nothing yet"
