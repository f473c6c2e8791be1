"""The limits of the API, all in one place, and served at /api/version."""

from typing import Any

from db.leases import MAX_OPEN
from db.ratelimit import Limit
from engine.evidence.submission import MAX_BODY_BYTES, MAX_DURATION_S, MAX_INFLATED_BYTES, MAX_TELEMETRY_BYTES
from engine.spec.reading import MAX_BYTES as MAX_SPEC_BYTES

MAX_LIST = 200
MAX_FINDINGS = 2000

ANY = Limit(name="any", burst=600, per_minute=1200)
"""All requests of one address."""

WRITE = Limit(name="write", burst=120, per_minute=240)
"""Requests of one contributor that change something."""

REGISTER = Limit(name="register", burst=20, per_minute=2)
"""Registrations from one address."""


def published() -> dict[str, Any]:
    """The limits as clients read them."""
    return {
        "body_bytes": MAX_BODY_BYTES,
        "telemetry_bytes": MAX_TELEMETRY_BYTES,
        "telemetry_inflated_bytes": MAX_INFLATED_BYTES,
        "spec_bytes": MAX_SPEC_BYTES,
        "duration_s": MAX_DURATION_S,
        "open_leases": MAX_OPEN,
        "list_items": MAX_LIST,
        "requests": {limit.name: {"burst": limit.burst, "per_minute": limit.per_minute} for limit in (ANY, WRITE, REGISTER)},
    }
