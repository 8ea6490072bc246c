"""MCTP (DSP0236) and its serial binding (DSP0253)."""
