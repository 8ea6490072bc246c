"""What runs on the card; `firmware.cnm` is what runs on a compute node module."""
