"""What a spec may name when it leaves the machine: nothing that means something else, or nothing, elsewhere."""

from engine.errors import SpecError
from engine.settings import Settings
from engine.spec.any import AnySpec, TaskSpec

_REVISION_LENGTH = 40


def check_shareable(spec: AnySpec) -> TaskSpec:
    """The spec, refused where a community cannot repeat it, or where it would mean something else, or nothing, on another machine.

    Raises:
        SpecError: it is of another kind, names local files, or a model without a fixed revision.
    """
    spec = as_task_spec(spec)
    for field in local_places(spec):
        raise SpecError(f"'{field}' names a local file; a task needs a dataset by 'name'.", next_step="Use a shipped dataset.")
    if is_folder(spec.model.id):
        raise SpecError(f"model '{spec.model.id}' names a local folder; a task needs a shipped model or 'owner/name'.")
    if "/" not in spec.model.id and spec.model.id not in shipped_models():
        raise SpecError(f"model '{spec.model.id}' is not shipped; expected one of: {', '.join(shipped_models())}, or 'owner/name'.")
    if "/" in spec.model.id and not _is_commit(spec.model.revision):
        given = "no revision" if spec.model.revision is None else f"revision '{spec.model.revision}'"
        raise SpecError(f"model '{spec.model.id}' has {given}; a task needs a commit of 40 hex digits.", next_step="Set 'model.revision'.")
    return spec


def as_task_spec(spec: AnySpec) -> TaskSpec:
    """The spec, as one of a kind that a task can have.

    Raises:
        SpecError: nothing that many machines could agree on comes out of its kind.
    """
    if not isinstance(spec, TaskSpec):
        raise SpecError(
            f"kind '{spec.kind}' says something of one machine and has no effects to pool, so a task cannot ask it; expected 'ablation'.",
            next_step="Run it for yourself, from the page Runs or with philab run.",
        )
    return spec


def shipped_models() -> list[str]:
    """Names of the models that come with philab; the default allow-list holds exactly these."""
    return [entry.id for entry in Settings.model_fields["allowed_models"].default]


def local_places(spec: AnySpec) -> list[str]:
    """Names of the fields that point to files of one machine."""
    return [f"{field}.path" for field, ref in spec.datasets.items() if ref.path is not None]


def is_folder(model_id: str) -> bool:
    """Whether a model id can only mean a folder of this machine."""
    parts = model_id.split("/")
    odd = any(part.startswith((".", "~")) or not part for part in parts)
    return len(parts) > 2 or odd or "\\" in model_id or ":" in model_id


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == _REVISION_LENGTH and set(revision) <= set("0123456789abcdef")
