"""`apf bench`: figures, each beside its baseline in the same run (INTERFACES.md, "bench NAME").

A benchmark prints what it found and never judges by its exit code: a machine that is busy must not
make anything fail. CPU time where our code is what is measured, wall time where others wait for it;
medians of several repetitions; ratios only between numbers of one run.
"""
