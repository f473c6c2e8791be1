"""Who is asking. Every question about things that belong to people takes a viewer."""

from dataclasses import dataclass
from typing import Literal, Self
from uuid import UUID

Action = Literal["run", "submit", "create_task", "review", "administer"]

_ALLOWED: dict[str, frozenset[str]] = {
    "contributor": frozenset({"run", "submit"}),
    "reviewer": frozenset({"run", "submit", "create_task", "review"}),
    "admin": frozenset({"run", "submit", "create_task", "review", "administer"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """A person with a role, or a visitor.

    Attributes:
        contributor_id: None for a visitor.
        role: contributor, reviewer or admin; None for a visitor.
        is_owner: the one person whom a local lab belongs to.
    """

    contributor_id: UUID | None = None
    role: str | None = None
    is_owner: bool = False

    @classmethod
    def visitor(cls) -> Self:
        """Somebody who has not signed in: sees what is public, changes nothing."""
        return cls()

    @property
    def is_admin(self) -> bool:
        """Whether everything may be seen and done."""
        return self.is_owner or self.role == "admin"

    def can(self, action: Action) -> bool:
        """Whether the role allows an action."""
        return self.is_owner or action in _ALLOWED.get(self.role or "", frozenset())
