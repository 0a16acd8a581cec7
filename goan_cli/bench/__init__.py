"""What the packed transformer costs on this machine: `goan bench`."""
