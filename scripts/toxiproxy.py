"""
Build the pinned Toxiproxy server once into the user's cache, and print where it lies.

    python scripts/toxiproxy.py            # build if it is not there, print the path
    python scripts/toxiproxy.py --path     # only print where it would lie
"""

from gotool import GoTool

TOXIPROXY = GoTool("toxiproxy-server", "github.com/Shopify/toxiproxy/v2/cmd/server", "v2.5.0", (1, 17))

if __name__ == "__main__":
    TOXIPROXY.main("Build the pinned Toxiproxy server once into the user's cache.")
