"""Every error a person may meet. The text holds the value, what was expected, and the next step.

LabError
├── SpecError             a spec, preset or settings value is wrong
├── DatasetError          a dataset is missing or a row of it is wrong
├── ModelError            a model cannot be used
│   ├── UnknownModel      no such model id or folder
│   ├── UnknownAnatomy    the model is built in a way the engine cannot address
│   └── ModelTooLarge     the weights do not fit the memory that is free
├── RunCancelled          somebody asked the run to stop
├── StoreError            an artefact cannot be written or read (disk full, missing)
├── DatabaseUnavailable   Postgres cannot be reached or may not be used
├── SubmissionRefused     a submission is not acceptable; `reason` is its reason code
├── NotFound              there is no such thing, or this viewer may not see it
├── Conflict              the thing changed, exists already, or is in use
├── NotAllowed            this viewer may not do that
├── RateLimited           too many requests; `retry_after_s` says when to come back
└── CommunityUnreachable  a community instance did not answer, or not as one

They are caught at three edges only: the page, the HTTP route and the command's exit code.
"""


class LabError(Exception):
    """Base of all errors that are meant for people.

    Attributes:
        code: short stable identifier, `snake_case`, used by the API and in tests.
        next_step: what the person can do now; part of the text.
    """

    code = "error"

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(f"{message} {next_step}".strip())
        self.message = message
        self.next_step = next_step


class SpecError(LabError):
    """A spec, preset or settings value is wrong."""

    code = "bad_spec"


class DatasetError(LabError):
    """A dataset is missing or a row of it is wrong."""

    code = "bad_dataset"


class ModelError(LabError):
    """A model cannot be used."""

    code = "bad_model"


class UnknownModel(ModelError):
    """No such model id or folder."""

    code = "unknown_model"


class UnknownAnatomy(ModelError):
    """The model is built in a way the engine cannot address."""

    code = "unknown_anatomy"


class ModelTooLarge(ModelError):
    """The weights do not fit the memory that is free."""

    code = "model_too_large"


class RunCancelled(LabError):
    """Somebody asked the run to stop."""

    code = "cancelled"


class StoreError(LabError):
    """An artefact cannot be written or read."""

    code = "store_failed"


class DatabaseUnavailable(LabError):
    """Postgres cannot be reached or may not be used."""

    code = "database_unavailable"


class SubmissionRefused(LabError):
    """A submission is not acceptable.

    Attributes:
        reason: reason code of the verdict, for example `spec_mismatch`.
    """

    code = "submission_refused"

    def __init__(self, message: str, *, reason: str, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.reason = reason


class NotFound(LabError):
    """There is no such thing, or this viewer may not see it."""

    code = "not_found"


class Conflict(LabError):
    """The thing changed, exists already, or is in use."""

    code = "conflict"


class NotAllowed(LabError):
    """This viewer may not do that."""

    code = "not_allowed"


class RateLimited(LabError):
    """Too many requests.

    Attributes:
        retry_after_s: seconds to wait before the next try.
    """

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: float, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.retry_after_s = retry_after_s


class CommunityUnreachable(LabError):
    """A community instance did not answer, or not as one."""

    code = "community_unreachable"
