"""What holds for all tests."""

from hypothesis import settings

# Processors are shared with others: how long an example takes says nothing of the code.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")
