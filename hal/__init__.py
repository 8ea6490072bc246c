"""The hardware as small ports, with linux, local and mock backends. Imports nothing of ours."""
