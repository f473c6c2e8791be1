"""What a spec may name here: a hosted instance has an allow-list of models, and nobody but its owner reads files of this machine."""

from collections.abc import Sequence

from db.viewer import Viewer
from engine.errors import NotAllowed
from engine.settings import AllowedModel, Settings
from engine.spec import AnySpec
from engine.spec.sharing import is_folder, local_places


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
    if (local_places(spec) or is_folder(spec.model.id)) and (hosted or not viewer.is_admin):
        raise NotAllowed(
            "the spec names files of this machine, which only the owner of a local lab may do.", next_step="Use a dataset by name."
        )
    if settings is not None and hosted:
        check_listed(spec, settings.allowed_models)


def check_listed(spec: AnySpec, allowed: Sequence[AllowedModel]) -> None:
    """Refuses a model that is not on the list in exactly this revision.

    Raises:
        NotAllowed: it is not; the text names those that are.
    """
    if (spec.model.id, spec.model.revision) not in {(entry.id, entry.revision) for entry in allowed}:
        names = ", ".join(entry.id for entry in allowed)
        raise NotAllowed(f"model '{spec.model.id}' is not allowed on this instance; allowed: {names}.", next_step="Ask an admin to add it.")
