"""What may stand neither in a manifest nor in the place of results: both are stored with every run and shown to all who may read it."""

from __future__ import annotations

import re

SECRET_NAME = re.compile(
    r"(?:^|_)(?:TOKENS?|SECRETS?|PASSWORDS?|PASSWD|PASSPHRASE|CREDENTIALS?|KEYS?)(?:_|$)"  # as a word of its own
    r"|(?:TOKEN|SECRET|PASSWORD|PASSWD|APIKEY)$"  # or where the words run together
    r"|_(?:PASS|PWD)$",
    re.IGNORECASE,
)
"""Names of environment variables that hold secrets, as far as a name tells."""

_USER_IN_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<user>[^/\s@?#]+)@")


def holds_credentials(text: str) -> bool:
    """Whether a URI in ``text`` names a user or a password. The one user of a Git server's SSH port, ``git``, is no secret."""
    return any(not (found["scheme"].lower().endswith("ssh") and ":" not in found["user"]) for found in _USER_IN_URI.finditer(text))
