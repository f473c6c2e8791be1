"""What to do, as closed and hashed data. Imports without torch."""

from engine.spec.ablation import AblationSpec
from engine.spec.any import AnySpec, NamedSpec, TaskSpec, parse_spec
from engine.spec.base import DatasetRef, Limits, ModelRef, Rows, Spec
from engine.spec.reading import parse_text, read_spec, shipped_specs, spec_to_yaml
from engine.spec.selftest import SelfTestSpec

__all__ = [
    "AblationSpec",
    "AnySpec",
    "DatasetRef",
    "Limits",
    "ModelRef",
    "NamedSpec",
    "Rows",
    "SelfTestSpec",
    "Spec",
    "TaskSpec",
    "parse_spec",
    "parse_text",
    "read_spec",
    "shipped_specs",
    "spec_to_yaml",
]
