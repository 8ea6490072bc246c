"""Compose files become workloads in their normal form.

Ref: the Compose Specification (compose-spec/compose-spec, 05-services.md and following). What a
card cannot honour is a warning with its line; what is invalid is refused whole.
"""

from tools.compose.load import Normalised, load_compose
from tools.compose.report import ComposeError, Finding

__all__ = ["ComposeError", "Finding", "Normalised", "load_compose"]
