"""
Build the pinned helm once into the user's cache, and print where it lies.

    python scripts/helm.py             # build if it is not there, print the path
    python scripts/helm.py --path      # only print where it would lie

The chart's tests use a helm 4 of the PATH where there is one, else this one.
"""

from gotool import GoTool

_VERSION = "v4.1.4"
HELM = GoTool(
    "helm",
    "helm.sh/helm/v4/cmd/helm",
    _VERSION,
    (1, 25),
    ldflags=f"-X helm.sh/helm/v4/internal/version.version={_VERSION}",
)

if __name__ == "__main__":
    HELM.main("Build the pinned helm once into the user's cache.")
