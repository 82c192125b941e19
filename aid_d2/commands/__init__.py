"""The commands of `aid-d2`."""
