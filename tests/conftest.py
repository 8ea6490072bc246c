"""What all rings share.

No test asserts a time (STYLE rule 11), so property tests have no deadline either: a busy machine is
slow, not wrong.
"""

from hypothesis import settings

settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")
