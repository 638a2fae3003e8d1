"""How the OpenAPI document words what a text may hold. The checks themselves stand elsewhere and explain more."""

from __future__ import annotations

from typing import Any, Final

_CONTROLS: Final = r"\x00-\x1f\x7f-\x9f"

TEXT: Final[dict[str, Any]] = {"pattern": r"^[^\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]*$"}
"""Any text of a body: tabs and line ends too."""
PROMPT: Final[dict[str, Any]] = {"pattern": rf"{TEXT['pattern'][:-1]}[^{_CONTROLS}\s]{TEXT['pattern'][1:]}"}
"""A text that is not blank."""
LINE: Final[dict[str, Any]] = {"pattern": rf"^[^{_CONTROLS}]*[^{_CONTROLS}\s][^{_CONTROLS}]*$"}
"""One line that is not blank."""
REFERENCE: Final[dict[str, Any]] = {"pattern": rf"^[^{_CONTROLS}\u2028\u2029]+$"}
"""One line for Unicode too."""
NETWORK: Final[dict[str, Any]] = {"pattern": r"^[0-9A-Fa-f:.]{2,45}(/[0-9]{1,3})?$"}
RETRY_KEY: Final = r"[\x20-\x7e]{1,255}"
"""Printable ASCII as the idempotency-key draft has it; 255 is what the books keep."""
SENT_RETRY_KEY: Final[dict[str, Any]] = {"pattern": r"^[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?$"}
"""The same without outer spaces, which headers lose on their way."""
