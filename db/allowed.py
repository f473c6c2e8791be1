"""What a spec may name here: a hosted instance has an allow-list of models, and nobody but its owner reads files of this machine."""

from collections.abc import Sequence

from db.viewer import Viewer
from engine.errors import NotAllowed, SpecError
from engine.settings import AllowedModel, Settings
from engine.spec import AnySpec, DatasetRef

_REVISION_LENGTH = 40


def check_allowed(spec: AnySpec, viewer: Viewer, settings: Settings | None) -> None:
    """Refuses a run of this spec by this viewer on this instance.

    Args:
        spec: what somebody wants to run here.
        viewer: who it is.
        settings: of this instance; left out, it is a local one.

    Raises:
        NotAllowed: the model is not on the list, or the spec names files and the viewer is not the owner.
    """
    hosted = settings is not None and settings.mode == "hosted"
    if (local_places(spec) or _is_folder(spec.model.id)) and (hosted or not viewer.is_admin):
        raise NotAllowed(
            "the spec names files of this machine, which only the owner of a local lab may do.", next_step="Use a dataset by name."
        )
    if settings is not None and hosted:
        check_listed(spec, settings.allowed_models)


def check_shareable(spec: AnySpec) -> None:
    """Refuses a spec that would mean something else, or nothing, on another machine.

    Raises:
        SpecError: it names local files, or a model without a fixed revision.
    """
    for field in local_places(spec):
        raise SpecError(f"'{field}' names a local file; a task needs a dataset by 'name'.", next_step="Use a shipped dataset.")
    if _is_folder(spec.model.id):
        raise SpecError(f"model '{spec.model.id}' names a local folder; a task needs a shipped model or 'owner/name'.")
    if "/" not in spec.model.id and spec.model.id not in shipped_models():
        raise SpecError(f"model '{spec.model.id}' is not shipped; expected one of: {', '.join(shipped_models())}, or 'owner/name'.")
    if "/" in spec.model.id and not _is_commit(spec.model.revision):
        given = "no revision" if spec.model.revision is None else f"revision '{spec.model.revision}'"
        raise SpecError(f"model '{spec.model.id}' has {given}; a task needs a commit of 40 hex digits.", next_step="Set 'model.revision'.")


def check_listed(spec: AnySpec, allowed: Sequence[AllowedModel]) -> None:
    """Refuses a model that is not on the list in exactly this revision.

    Raises:
        NotAllowed: it is not; the text names those that are.
    """
    if (spec.model.id, spec.model.revision) not in {(entry.id, entry.revision) for entry in allowed}:
        names = ", ".join(entry.id for entry in allowed)
        raise NotAllowed(f"model '{spec.model.id}' is not allowed on this instance; allowed: {names}.", next_step="Ask an admin to add it.")


def shipped_models() -> list[str]:
    """Names of the models that come with philab; the default allow-list holds exactly these."""
    return [entry.id for entry in Settings.model_fields["allowed_models"].default]


def local_places(spec: AnySpec) -> list[str]:
    """Names of the fields that point to files of one machine."""
    references: dict[str, DatasetRef | None] = {"dataset.path": spec.dataset, "reference.path": spec.reference}
    return [field for field, ref in references.items() if ref is not None and ref.path is not None]


def _is_folder(model_id: str) -> bool:
    parts = model_id.split("/")
    odd = any(part.startswith((".", "~")) or not part for part in parts)
    return len(parts) > 2 or odd or "\\" in model_id or ":" in model_id


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == _REVISION_LENGTH and set(revision) <= set("0123456789abcdef")
