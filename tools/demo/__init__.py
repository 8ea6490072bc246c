"""The main job, end to end, on one machine, each step proven from outside (`apf demo`)."""
