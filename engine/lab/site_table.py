"""Which sites a model has, and why it lacks the others."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from engine.errors import LabError
from engine.hooks.capture import captured
from engine.hooks.sites import GLOBAL, GROUPED, HOOK_NAMES, PAIRS, PER_HEAD, Site, SiteName
from engine.lab.display import html_table, text_table
from engine.models.loading import LoadedModel

if TYPE_CHECKING:
    import pandas

COLUMNS = ("site", "written as", "there", "shape or reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """One name of a site.

    Attributes:
        name: as in `Site(name=...)`.
        written: the hook name, with `<layer>` where a layer is to be put in.
        there: whether the model has it, in every layer.
        about: its shape; why it is missing where it is.
    """

    name: SiteName
    written: str
    there: bool
    about: str


class SiteTable(tuple[SiteRow, ...]):
    """All names of sites; shows itself as a table."""

    __slots__ = ()

    def to_pandas(self) -> "pandas.DataFrame":
        """One row per name."""
        import pandas

        return pandas.DataFrame(self._cells(), columns=list(COLUMNS))

    def _cells(self) -> list[tuple[object, ...]]:
        return [(row.name, row.written, "yes" if row.there else "no", row.about) for row in self]

    def __repr__(self) -> str:
        """As text."""
        return text_table("Sites", COLUMNS, self._cells())

    def _repr_html_(self) -> str:
        return html_table("Sites", COLUMNS, self._cells())


def site_table(loaded: LoadedModel) -> SiteTable:
    """The sites of a model; may run it on a few tokens, to see whether the inside of its attention can be reached."""
    with loaded.lock:
        return SiteTable(_row(loaded, name) for name in get_args(SiteName))


def _row(loaded: LoadedModel, name: SiteName) -> SiteRow:
    layers = [None] if name in GLOBAL else range(loaded.anatomy.n_layers)
    missing = next((why for layer in layers if (why := _missing(loaded, Site(layer=layer, name=name)))), "")
    written = HOOK_NAMES[name] if name in GLOBAL else f"blocks.<layer>.{HOOK_NAMES[name]}"
    return SiteRow(name=name, written=written, there=not missing, about=missing or _shape(loaded, name))


def _missing(loaded: LoadedModel, site: Site) -> str:
    try:
        with captured(loaded, [site]):
            return ""
    except LabError as why:
        return why.message


def _shape(loaded: LoadedModel, name: SiteName) -> str:
    anatomy = loaded.anatomy
    if name in PAIRS:
        return f"[batch, {anatomy.n_heads} heads, query, key]"
    width = anatomy.width(Site(layer=None if name in GLOBAL else 0, name=name)) or anatomy.d_head
    heads = anatomy.n_kv_heads if name in GROUPED else anatomy.n_heads
    return f"[batch, pos, {heads} heads, {width}]" if name in PER_HEAD - {"z"} else f"[batch, pos, {width}]"
