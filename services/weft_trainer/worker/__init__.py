"""The ranks of a training run, and the export of what they made: `python -m weft_trainer.worker[.export]`."""
