"""
Write the dashboards that the chart and compose ship: `python -m deploy.grafana`, from the root of the repository.

    python -m deploy.grafana --check     # only compare, and fail where a file is not what would be written
"""

import sys
from pathlib import Path

from deploy.grafana.dashboards import FOLDER, rendered


def main(arguments: list[str]) -> int:
    """Write or compare; return the exit status."""
    stale: list[Path] = []
    for name, text in rendered().items():
        path = FOLDER / name
        if path.is_file() and path.read_text() == text:
            continue
        stale.append(path)
        if "--check" not in arguments:
            path.write_text(text)
    for path in stale:
        sys.stdout.write(f"{path}\n")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
