"""What runs on a CNM: its init (DESIGN D13) and its agent, the same on real and mock ports."""
