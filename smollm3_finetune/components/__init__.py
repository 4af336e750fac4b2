"""What plugins offer: found, registered, selected by name, checked against this machine and each other."""
