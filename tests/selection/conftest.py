"""Property tests here are cheap, but the first example of a process pays for imports: no deadline for one example."""

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
