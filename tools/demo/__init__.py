"""The main job, end to end, on one machine, each step proven from outside (`apf demo`).

command     the options; cleans up whatever happens
runner      the steps in order, each with its time and its proofs (`report`)
context     what steps share: places of their own, the `apf` command, patience
observe*    what this host shows of the card: /proc, cgroups, files, runc
sampler     is there ever a second copy? looked at again and again while something happens
breaking    faults on purpose, which a step must notice
steps/      the job itself
"""
