"""One file or folder a format; the name is the `kind` of a config entry."""
