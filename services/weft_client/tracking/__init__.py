"""A run's metrics in the files of other tools; each needs its own extra: `weft[tensorboard]`, `weft[wandb]`."""
