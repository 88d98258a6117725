"""The trainer service, whose ranks are stand-ins."""

from weft_common.server import run_service
from weft_common.settings import load_settings
from weft_trainer.__main__ import build
from weft_trainer.settings import TrainerSettings

if __name__ == "__main__":
    settings = load_settings(TrainerSettings)
    run_service("trainer", settings, lambda: build(settings, worker_module="stand_in_rank"))
