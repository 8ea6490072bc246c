"""The local board: CNMs as processes of this machine, held by the keeper (DESIGN D12)."""
