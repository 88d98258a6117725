"""`python -m weft_console`: reads the settings and serves the page."""

from weft_common.settings import load_settings
from weft_console.serve import run_console
from weft_console.settings import ConsoleSettings

if __name__ == "__main__":
    run_console(load_settings(ConsoleSettings))
