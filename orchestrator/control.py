"""How people stop a run whose driver is elsewhere: a small file in the run's folder that the driver looks at every few seconds.

It counts requests, as the driver counts signals: the first drains, the second stops what runs. A resume begins with the file removed.
"""

from __future__ import annotations

import json
import time

from orchestrator.files import Files

STOP_FILE = "stop.json"
DRAIN, FORCE = 1, 2


def request_stop(files: Files, *, force: bool = False) -> int:
    """Ask once more; how often the driver has been asked now, ``FORCE`` at most."""
    requests = FORCE if force else min(stop_requests(files) + 1, FORCE)
    files.write(STOP_FILE, json.dumps({"requests": requests, "at": time.time()}).encode(), durable=False)
    return requests


def stop_requests(files: Files) -> int:
    """How often the driver has been asked to stop; a file that cannot be understood counts as one request."""
    try:
        found = json.loads(files.read(STOP_FILE))
    except FileNotFoundError:
        return 0
    except ValueError:
        return DRAIN
    requests = found.get("requests") if isinstance(found, dict) else None
    return min(max(requests, 0), FORCE) if isinstance(requests, int) else DRAIN


def clear_stop(files: Files) -> None:
    """Forget earlier requests."""
    files.remove(STOP_FILE)
